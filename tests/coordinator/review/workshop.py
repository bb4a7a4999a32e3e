"""A worker with everything around it but a base: its model does as it is told."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.registry.registry import Registry
from coordinator.review.bundle_cache import Cache
from coordinator.review.kept_figures import KeptFigures
from coordinator.review.probe import Reviewer
from coordinator.review.worker import Worker
from coordinator.storage.blobs import Store
from coordinator.workspace.checkpoints import Checkpoints
from coordinator.workspace.keyring import Keyring
from coordinator.workspace.material import ROWS, Material, TrialRows
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.adapters import Kind
from protocol.bundle import Bundle
from protocol.documents import Enrolment, Pool
from protocol.errors import Code, Refused
from protocol.release import Release, read_release
from protocol.signing import Identity
from router.model.cap import Allowed, Cap
from router.model.headroom import Probed
from router.pool.calibration import Calibration
from router.query.request import RoutingChoice
from tests import factories
from tests.coordinator.conftest import Clock
from tests.coordinator.contributor import NOW

MATERIAL = Material(("probe",), {ROWS: TrialRows(("row",), ("right",))})


class ObedientModel:
    """Counts what it is asked to do, and fails on the bundles it is told to fail on."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.appended: list[str] = []
        self.examined: list[str] = []
        self.breaks_on: set[str] = set()
        self.breaks_beside: set[str] = set()
        """What breaks the model only in company."""
        self.norm: dict[str, float] = {}
        self.harm: dict[str, float] = {}
        """By how much a bundle raises the loss on rows."""
        self.probes = 0
        self.greedy: dict[str, float] = {}
        """By how much a bundle is to be lowered."""
        self.alike: dict[frozenset[str], float] = {}
        self.newcomers: list[str] = []
        """Of the last fit."""
        self.fits: list[tuple[str, ...]] = []
        self._names: dict[str, str] = {}
        self._lacking: frozenset[str] = frozenset()

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(self.held)

    def append(self, bundle: Bundle, *, name: str | None = None, contributor: str = "") -> None:
        self.held.append(bundle.digest)
        if name != f"={bundle.digest}":
            self.appended.append(bundle.digest)
        self._names[bundle.digest] = f"{contributor}/{name}" if contributor else str(name)

    def remove(self, digest: str) -> None:
        self.held.remove(digest)

    @contextmanager
    def lacking(self, *digests: str) -> Iterator[None]:
        self._lacking = frozenset(digests)
        yield
        self._lacking = frozenset()

    def norms(self, digest: str, tick: Callable[[], None]) -> dict[str, float]:
        assert digest in self.held
        tick()
        self.examined.append(digest)
        return {"q": self.norm.get(digest, 0.3)}

    def probe(
        self,
        inputs: Sequence[str],
        targets: Sequence[str],
        choice: RoutingChoice,
        tick: Callable[[], None],
    ) -> Probed:
        assert (inputs, targets) in ((("probe",), ("probe",)), (("row",), ("right",)))
        tick()
        self.probes += 1
        active = self._active(choice.method)
        if self.breaks_on.intersection(active) or (self.breaks_beside.intersection(active) and len(active) > 1):
            raise Refused(Code.PROBE_FAILED, "It is not finite.")
        return Probed((1.0 + sum(self.harm.get(digest, 0.0) for digest in active),), 0.001)

    def fit_cap(
        self,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        allowed: Allowed,
        calibration: Calibration | None,
        tick: Callable[[], None],
    ) -> Cap:
        assert (list(inputs), list(targets), allowed.most) == (["probe", "row"], ["probe", "right"], 1.5)
        tick()
        self.fits.append(self.digests)
        self.newcomers = list(allowed.newcomers)
        lowered = [digest for digest in self.held if digest in self.greedy]
        bias = np.array([[-self.greedy[digest] for digest in lowered]], np.float32)
        zeros = Calibration.zeros(lowered, ["q"] if lowered else [])
        return Cap(zeros.at(np.append(bias, 0.0)) if lowered else zeros, 1.0)

    def find_alike(
        self, digest: str, inputs: Sequence[str], targets: Sequence[str], tick: Callable[[], None]
    ) -> dict[str, float]:
        tick()
        return {other: self.alike.get(frozenset((other, digest)), 0.3) for other in self.held if other != digest}

    def _active(self, method: str | None) -> Collection[str]:
        if method == "base":
            return ()
        if method is None:
            return [digest for digest in self.held if digest not in self._lacking]
        (alone,) = (digest for digest in self.held if f"expert:{self._names[digest]}" == method)
        return (alone,)


class Workshop:
    """A worker with everything around it."""

    def __init__(self, folder: Path, pool: Pool, identity: Identity, registry: Registry, clock: Clock) -> None:
        self.pool, self.identity, self.registry, self.clock = pool, identity, registry, clock
        self.folder = folder
        self.store = Store(str(folder / "store"))
        self.cache = Cache(folder / "cache", self.store)
        self.model = ObedientModel()
        self.load: Callable[[], Any] = lambda: self.model
        self.verdicts: dict[str, Refused] = {}
        self.worker = self.start()

    def start(self) -> Worker:
        place = CoordinatorWorkspace(self.folder)
        keyring = Keyring(place, held=(self.identity,))
        return Worker(
            self.pool,
            self.identity,
            self.registry,
            cache=self.cache,
            check=self.check,
            reviewer=self.reviewer(),
            clock=self.clock,
            checkpoint=Checkpoints(place, self.registry, self.pool, keyring).newest,
        )

    def reviewer(self, seconds: float = 60.0) -> Reviewer:
        return Reviewer(
            self._load, self.registry, self.cache, material=MATERIAL, review=self.pool.spec.policy.review,
            kept=KeptFigures(self.folder / "figures", MATERIAL.digest), seconds=seconds,
        )  # fmt: skip

    def _load(self) -> Any:
        return self.load()

    def check(self, bundle: Bundle) -> None:
        if bundle.digest in self.verdicts:
            raise self.verdicts[bundle.digest]

    def receive(self, bundle: Bundle, contributor: str = "ada") -> Bundle:
        key = bundle.spec.contributor
        document = Enrolment(pool=self.pool.digest, name=contributor, key=key, created=NOW)
        self.registry.contributors.enrol(document, b"", state="active", now=self.clock())
        for name, file in bundle.manifest.files.items():
            self.store.put(bundle.folder / name, file.sha256)
        self.registry.bundles.keep(bundle.manifest, check=lambda _: None, sign=lambda _: b"receipt", now=self.clock())
        return bundle

    def state(self, bundle: Bundle) -> str:
        row = self.registry.bundles.find(bundle.digest)
        assert row is not None
        return row.state

    def newest(self) -> Release:
        row = self.registry.releases.find()
        assert row is not None
        return read_release(row.envelope, self.pool)

    def listed(self) -> list[str]:
        return [expert.bundle for expert in self.newest().spec.experts]


def make(shop: Workshop, folder: Path, number: int, identity: Identity, kind: Kind = "lora") -> Bundle:
    return factories.make_bundle(folder / str(number), shop.pool, identity, name=f"e{number}", seed=number, kind=kind)
