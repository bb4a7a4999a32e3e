"""A pool to try things in: keys, a registry and contributors that are thrown away afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from coordinator.fleet.records.fleet import Fleet
from coordinator.registry.registry import Registry
from coordinator.workspace.context import Opened
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.settings import Settings
from protocol.adapters import Shape
from protocol.documents import ENROLMENT_TYPE, Enrolment, sign, sign_pool, timestamp
from protocol.fleet.campaign import APP_DIGEST
from protocol.fleet.node_key import NodeKey, bind, read_binding
from protocol.release import ReleasedExpert, ReleaseSpec, sign_candidate
from protocol.signing import Identity
from protocol.spec import BaseModelRef, Policy, PoolSpec

_NOTHING = "0" * 64


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

    Args:
        folder: Where the registry goes.
        policy: The pool's; that of a new pool, unless given.
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
    registry = Registry.open(f"sqlite:///{folder / 'registry.db'}", migrate=True)
    settings = Settings(base="none", database="none", store=str(folder), probe=folder / "none")
    try:
        yield Opened(CoordinatorWorkspace(folder), settings, sign_pool(spec, identity), identity, registry)
    finally:
        registry.close()


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
    Fleet(opened.registry).candidates.propose(sign_candidate(spec, opened.identity), now=now)
