"""Run one campaign over virtual contributors: some die, some come late, and the registry tells the rest.

They contribute to a pool to try things in, whose keys and registry are thrown away afterwards.
"""

import pkgutil
import random
import resource
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp

from coordinator.fleet.campaigns.driver import ASK_AGAIN_S, Driver
from coordinator.fleet.campaigns.start import ENDS_AFTER, OPEN_FOR, start
from coordinator.fleet.records.campaigns import FINAL
from coordinator.fleet.records.fleet import Fleet
from coordinator.fleet.simulation.local_grid import LocalGrid, VirtualNode
from coordinator.registry.registry import Registry
from coordinator.workspace.context import Opened
from coordinator.workspace.keyring import Keyring
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.settings import Settings
from protocol.adapters import Shape
from protocol.documents import ENROLMENT_TYPE, Duty, Enrolment, sign, sign_pool, timestamp
from protocol.errors import Code, Unavailable
from protocol.fleet.campaign import APP_DIGEST, CLIENT_APP, Kind, Order
from protocol.fleet.node_key import NodeKey, bind, read_binding
from protocol.fleet.reply import Reply
from protocol.release import ReleasedExpert, ReleaseSpec, sign_candidate
from protocol.signing import Identity
from protocol.spec import BaseModelRef, Policy, PoolSpec

_NOTHING = "0" * 64
LONGEST_S, _PAUSE_S = 600.0, 0.02
_ABOUT_EXPERTS: dict[Kind, int] = {"evaluate": 0, "calibrate": 2}
"""How many experts a candidate lists that virtual nodes are asked about."""


def simulate(
    folder: Path,
    kind: Kind,
    count: int,
    *,
    failing: float = 0.0,
    late: float = 0.0,
    seed: int = 0,
    policy: Policy | None = None,
) -> dict[str, Any]:
    """Run a campaign over virtual nodes to its end; whenever nobody is at work, the clock jumps ahead.

    Args:
        folder: Where the registry goes.
        kind: Of the campaign.
        count: How many nodes.
        failing: Share of them that die over every message.
        late: Share of them that come only after the first round.
        seed: Of who fails, who is late, and the figures that nodes tell.
        policy: The pool's; that of a new pool, unless given.

    Raises:
        Unavailable: `BUSY` if it takes longer than `LONGEST_S` seconds.
    """
    order = random.Random(seed).sample(range(count), count)  # noqa: S311 - no secret
    dying, tardy = order[: round(failing * count)], order[count - round(late * count) :]
    clock, began = Clock(), time.monotonic()
    # Found by the name that campaigns give it: a coordinator's code knows nothing of the client's.
    make_app: Callable[..., ClientApp] = pkgutil.resolve_name(CLIENT_APP)
    with open_pool(folder, policy) as opened:
        publics = [enrol(opened, f"node-{number:04}") for number in range(count)]
        apps = [make_app(opened.pool, partial(answer, f"{seed}-{at}"), str) for at in range(count)]
        nodes = zip(publics, apps, strict=True)
        grid = LocalGrid([VirtualNode(*node, up=at not in tardy, dies=at in dying) for at, node in enumerate(nodes)])
        try:
            if kind in _ABOUT_EXPERTS:
                propose(opened, clock(), _ABOUT_EXPERTS[kind])
            number = start(opened, kind, open_for=OPEN_FOR, ends_after=ENDS_AFTER, now=clock()).number
            driver, fleet = Driver(opened, grid.as_run, clock=clock), Fleet(opened.registry)
            while fleet.campaigns.find(number).state == "running":
                if time.monotonic() > began + LONGEST_S:
                    raise Unavailable(Code.BUSY, f"The campaign did not end within {LONGEST_S:.0f} s.")
                driver.step()
                if not any(answer.state == "asked" for answer, _ in fleet.campaigns.answers(number)):
                    for at in tardy:
                        grid.nodes[at].up = True
                    clock.forward(timedelta(seconds=ASK_AGAIN_S))
                time.sleep(_PAUSE_S)
        finally:
            grid.close()
        answers = fleet.campaigns.answers(number)
        ended = {name for answer, name in answers if answer.state in FINAL}
        return {
            "nodes": count, "failing": len(dying), "late": len(tardy), "kind": kind,
            "answered": sum(answer.state == "done" for answer, _ in answers),
            "failed": [name for answer, name in answers if answer.state == "failed"],
            "silent": [name for _, name in fleet.nodes.all() if name not in ended],
            "conclusion": fleet.campaigns.find(number).conclusion, "seconds": round(time.monotonic() - began, 1),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10),
        }  # fmt: skip


def answer(seed: str, order: Order) -> Reply:
    """Draw an answer to an order, as the schema of its kind wants it."""
    draw = random.Random(f"{seed}-{order.number}")  # noqa: S311 - no secret
    if order.calibrating is not None:
        numbers = array("f", (draw.gauss(0, 0.1) for _ in range(order.calibrating.numbers)))
        return Reply(words={"round": str(order.calibrating.number)}, update=numbers.tobytes())
    base = draw.uniform(2.0, 3.0)
    metrics = {
        "info": {"memory_gb": draw.uniform(4, 64)},
        "train": {"loss": base},
        "evaluate": {"loss_base": base, "loss_candidate": base - draw.gauss(0.1, 0.05)},
    }
    return Reply(metrics=metrics[order.kind])


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


@contextmanager
def open_pool(folder: Path, policy: Policy | None = None) -> Iterator[Opened]:
    """Found a pool over a base model that nobody loads, with an empty registry.

    Its key is its own, so that nothing that is signed here is worth anything anywhere else.
    """
    identity = Identity.generate()
    spec = PoolSpec(
        name="scratch",
        base=BaseModelRef(name="none", config=_NOTHING, weights=_NOTHING, tokenizer=_NOTHING),
        architecture="encoder-decoder",
        modules={"only": Shape(d_in=8, d_out=8)},
        policy=policy or Policy(apps=(APP_DIGEST,)),
        coordinator=identity.public.hex,
        created=timestamp(datetime.now(UTC)),
    )
    settings = Settings(base="none", database="none", store=str(folder), probe=folder / "none")
    with closing(Registry.open(f"sqlite:///{folder / 'registry.db'}", migrate=True)) as registry:
        place = CoordinatorWorkspace(folder)
        keyring = Keyring(place, held=(identity,))
        yield Opened(place, settings, sign_pool(spec, identity), keyring, registry)


def enrol(opened: Opened, name: str) -> str:
    """Enrol a contributor with a node, and return the node's public key."""
    identity, node, now = Identity.generate(), NodeKey.generate(), datetime.now(UTC)
    enrolment = Enrolment(pool=opened.pool.digest, name=name, key=identity.public.hex, created=timestamp(now))
    envelope = sign(ENROLMENT_TYPE, {"pool": opened.pool.digest}, enrolment, identity)
    opened.registry.contributors.enrol(enrolment, envelope, state="active", now=now)
    binding = bind(opened.pool.digest, identity, node, timestamp(now))
    Fleet(opened.registry).nodes.bind(read_binding(binding), binding, now=now)
    return node.public


def propose(opened: Opened, now: datetime, experts: int = 0) -> None:
    """Open a candidate that lists experts whom nobody has seen, for campaigns that are about one."""
    listed = tuple(ReleasedExpert(name=f"e{at}", contributor="nobody", bundle=f"{at:064x}") for at in range(experts))
    spec = ReleaseSpec(
        pool=opened.pool.digest, number=1, previous=None, experts=listed, routing=opened.pool.spec.routing,
        created=timestamp(now), expires=timestamp(now + timedelta(days=1)),
    )  # fmt: skip
    Fleet(opened.registry).candidates.propose(sign_candidate(spec, opened.signer(Duty.RELEASES)), now=now)
