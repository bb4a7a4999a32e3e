"""Rehearse one campaign over virtual contributors: some fail, some come late, and the registry tells the rest."""

import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from client.daemon.app import make_app
from coordinator.fleet.drive import Driver
from coordinator.fleet.orders import start
from coordinator.fleet.records import Fleet
from coordinator.opening import Opened
from coordinator.registry import Registry
from coordinator.settings import Settings, Workspace
from deploy.rehearsal.grid import LocalGrid, VirtualNode
from protocol.campaign import APP_DIGEST, Order
from protocol.kinds import Shape
from protocol.node import NodeKey, bind, read_binding
from protocol.release import ENROLMENT_TYPE, Enrolment, Pool, sign, sign_pool, timestamp
from protocol.reply import Reply
from protocol.signing import Identity
from protocol.spec import BaseModelRef, Policy, PoolSpec

LIMIT_S = 300.0
"""Longest rehearsal, in seconds."""


class Clock:
    """The time, which can be moved on."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        """Tell the time."""
        return datetime.now(UTC) + self._ahead

    def forward(self, by: timedelta) -> None:
        """Move on."""
        self._ahead += by


def make_pool(identity: Identity, policy: Policy) -> Pool:
    """Sign a pool over a base model that nobody loads."""
    digest = "0" * 64
    spec = PoolSpec(
        name="rehearsal",
        base=BaseModelRef(name="none", config=digest, weights=digest, tokenizer=digest),
        architecture="encoder-decoder",
        modules={"only": Shape(d_in=8, d_out=8)},
        policy=policy,
        coordinator=identity.public.hex,
        created=timestamp(datetime.now(UTC)),
    )
    return sign_pool(spec, identity)


@contextmanager
def open_pool(folder: Path, policy: Policy | None = None) -> Iterator[Opened]:
    """Found a pool that needs no model, with an empty registry."""
    identity = Identity.generate()
    pool = make_pool(identity, policy or Policy(apps=(APP_DIGEST,)))
    registry = Registry.open(f"sqlite:///{folder / 'registry.db'}", migrate=True)
    settings = Settings(base="none", database="none", store=str(folder), probe=folder / "none")
    try:
        yield Opened(Workspace(folder), settings, pool, identity, registry)
    finally:
        registry.close()


def enrol(opened: Opened, name: str) -> str:
    """Enrol a contributor with a node, and return the node's public key."""
    identity, node, now = Identity.generate(), NodeKey.generate(), datetime.now(UTC)
    enrolment = Enrolment(pool=opened.pool.digest, name=name, key=identity.public.hex, created=timestamp(now))
    envelope = sign(ENROLMENT_TYPE, {"pool": opened.pool.digest}, enrolment, identity)
    opened.registry.enrol(enrolment, envelope, state="active", now=now)
    binding = bind(opened.pool.digest, identity, node, timestamp(now))
    Fleet(opened.registry).bind(read_binding(binding), binding, now=now)
    return node.public


def work(order: Order) -> Reply:
    """Answer as a node would, without the hours."""
    if order.kind == "train":
        return Reply(words={"bundle": "ab" * 32}, metrics={"loss": 0.5, "seconds": 0.0})
    return Reply(words={"device": "cpu", "rows": "100 to 1,000"}, metrics={"memory_gb": 1.0})


def rehearse(folder: Path, count: int, *, failing: float, late: float, seed: int) -> dict[str, object]:
    """Run a `train` campaign over virtual nodes to its end.

    Args:
        folder: Where the registry goes.
        count: How many nodes.
        failing: Share of nodes that die over every message.
        late: Share of nodes that come only after the first round.
        seed: Of who fails and who is late.
    """
    draw, clock = random.Random(seed), Clock()  # noqa: S311 - no secret
    with open_pool(folder) as opened:
        order = draw.sample(range(count), count)
        dying, tardy = set(order[: round(failing * count)]), set(order[-round(late * count) :] if late else [])
        nodes = [
            VirtualNode(
                enrol(opened, f"node-{at:04}"),
                make_app(opened.pool, work, lambda _: None),
                up=at not in tardy,
                fails=(lambda: True) if at in dying else (lambda: False),
            )
            for at in range(count)
        ]
        grid = LocalGrid(nodes)
        driver = Driver(opened, grid.as_run, clock=clock, ask_again_s=1.0)
        row = start(opened, "train", open_for=timedelta(minutes=5), ends_after=timedelta(minutes=10), now=clock())
        fleet, began = Fleet(opened.registry), time.monotonic()
        settled = count - len(dying)
        while fleet.campaign(row.number).state == "running":
            driver.step()
            if all(node.up for node in nodes):
                done = sum(answer.state == "done" for answer, _ in fleet.answers(row.number))
                clock.forward(timedelta(minutes=1) if done == settled else timedelta(0))
            for node in nodes:
                node.up = True
            if time.monotonic() - began > LIMIT_S:
                raise RuntimeError("The rehearsal does not come to an end.")
        grid.close()
        states = [answer.state for answer, _ in fleet.answers(row.number)]
        return {
            "schema": 1, "nodes": count, "failing": len(dying), "late": len(tardy), "answered": states.count("done"),
            "conclusion": fleet.campaign(row.number).conclusion, "seconds": round(time.monotonic() - began, 1),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }  # fmt: skip
