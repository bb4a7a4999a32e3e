"""A copy of the honest pool, with the coordinator's real intake, checks, review and releases, and an attacker in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import structlog
from safetensors.torch import save_file
from torch import Tensor

from coordinator.cli.output import now, opened_workspace
from coordinator.cli.processes import _worker
from coordinator.policy.lifecycle import State
from coordinator.review.worker import Worker
from coordinator.serving.intake import Intake, IntakeLimits
from coordinator.storage.blobs import Store
from coordinator.storage.spool import Spool
from coordinator.workspace.context import Opened
from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle, pack
from protocol.errors import Code, Refused
from protocol.release import read_release
from protocol.signing import Identity
from protocol.spec import Means, Statistics
from router.pool.calibration import Calibration
from tests import factories
from tests.attacks.honest import HonestPool
from tests.attacks.weights import RANK, Expert, Gates, factor, mean_directions, public_inputs, read
from tests.coordinator.contributor import enrolment


@dataclass
class Attempt:
    """One bundle that an attacker hands in, and what became of it."""

    bundle: Bundle
    state: str = ""
    code: str = ""


@dataclass
class Knowledge:
    """What every attacker knows: the pool's releases are public, and so is the base."""

    honest: HonestPool

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """The released experts by contributor."""
        return {name: read(bundle) for name, bundle in self.honest.bundles.items()}

    @cached_property
    def inputs(self) -> dict[str, list[Tensor]]:
        """What each module is given, [s, d] a request."""
        return public_inputs()

    @cached_property
    def means(self) -> Gates:
        """The mean direction of each module."""
        return mean_directions(self.inputs)

    @property
    def like(self) -> Expert:
        """Any honest expert, for the shapes."""
        return next(iter(self.experts.values()))


@dataclass
class Arena:
    """Where one attack takes place."""

    folder: Path
    opened: Opened
    known: Knowledge
    intake: Intake
    spool: Spool
    worker: Worker
    attempts: list[Attempt] = field(default_factory=list)

    def hand_in(self, name: str, expert: Expert, identity: Identity | None = None) -> Attempt:
        """Sign an expert with a key of its own and take it as far as the registry; the worker has yet to look."""
        identity = identity or Identity.generate()
        attempt = Attempt(self._pack(name, expert, identity))
        self.attempts.append(attempt)
        try:
            self._send(attempt.bundle, f"key-{identity.public.hex[:8]}", identity)
        except Refused as refused:
            attempt.state, attempt.code = "refused", refused.code.name
        return attempt

    def work(self) -> None:
        """Let the worker do all that there is to do, and note what became of what was handed in."""
        while self.worker.step():
            pass
        for attempt in self.attempts:
            if row := self.opened.registry.bundles.find(attempt.bundle.digest):
                attempt.state, attempt.code = row.state, row.code

    def yank(self, attempt: Attempt) -> None:
        """Take an expert out as an operator does."""
        reason = Refused(Code.DECLINED, "It answers wrongly.")
        self.opened.registry.bundles.move(
            attempt.bundle.digest, State.YANKED, actor="operator", reason=reason, now=now(), pause=True
        )
        self.work()

    def released(self) -> tuple[list[str], Calibration | None]:
        """Digests in the newest release, and its cap."""
        registry = self.opened.registry
        row = registry.releases.find()
        assert row is not None
        spec = read_release(row.envelope, self.opened.pool).spec
        content = registry.caps.content(spec.cap.sha256) if spec.cap else None
        return [expert.bundle for expert in spec.experts], Calibration.load(content) if content else None

    def _pack(self, name: str, expert: Expert, identity: Identity) -> Bundle:
        folder = self.folder / "made" / f"{name}-{identity.public.hex[:16]}"
        told = Statistics(means=Means() if expert.means else None)
        bundle = factories.make_bundle(
            folder, self.opened.pool, identity, name=name, rank=RANK, alpha=expert.alpha,
            modules=list(expert.factors), statistics=told,
        )  # fmt: skip
        factors = {
            factor(path, which): tensor
            for path, both in expert.factors.items()
            for which, tensor in zip("AB", both, strict=True)
        }
        gates = {f"{path}.gate": expert.gates[path] for path in expert.factors}
        gates |= {f"{path}.mean": mean for path, mean in (expert.means or {}).items()}
        for file, tensors in ((ADAPTER_WEIGHTS, factors), (GATES, gates)):
            own = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
            save_file(own, folder / file, {"format": "pt"})
        return pack(folder, bundle.spec, identity)

    def _send(self, bundle: Bundle, name: str, identity: Identity) -> None:
        self.intake.enrol(enrolment(self.opened.pool.digest, identity, name), "192.0.2.1")
        begun = self.intake.begin(bundle.manifest.envelope)
        for missing in begun.missing:
            content = (bundle.folder / missing.name).read_bytes()
            writer = self.spool.append(bundle.digest, missing.name, len(content))
            writer.write(content[missing.offset :])
            writer.sync()
            writer.close()
        self.intake.commit(bundle.digest, begun.token)


@contextmanager
def arena(folder: Path, known: Knowledge, *, settled: bool = True) -> Iterator[Arena]:
    """Copy the honest pool into a folder and open it as `serve` and `worker` do."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(known.honest.coordinator, folder / "coordinator", ignore=shutil.ignore_patterns("*.lock", "spool"))
    with opened_workspace(folder / "coordinator", "serve", "worker") as opened:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        opened.high_water.check()
        settings = opened.settings
        spool = Spool(
            opened.workspace.spool, quota_bytes=settings.spool_quota_bytes, floor_bytes=settings.free_disk_floor_bytes
        )
        limits = IntakeLimits(first_bundles=settings.first_bundles, hourly_keys=settings.hourly_keys)
        intake = Intake(
            opened.pool, opened.identity, opened.registry, store=Store(settings.store), spool=spool, clock=now,
            limits=limits,
        )  # fmt: skip
        # The six have settled, and whoever comes now is new.
        later = timedelta(days=opened.pool.spec.policy.settle_days + 1) * settled
        yield Arena(folder, opened, known, intake, spool, _worker(opened, lambda: now() + later))
    shutil.rmtree(folder, ignore_errors=True)
