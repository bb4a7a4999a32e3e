"""What keeps everybody to a share of each release: fitted once for each list, and kept where routers fetch it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from coordinator.fleet.records.fleet import Fleet
from coordinator.registry.registry import Registry
from coordinator.registry.tables import CapRow
from coordinator.review.probe import Reviewer
from protocol.documents import Pool
from protocol.release import CapFile, ReleaseSpec

_log = structlog.get_logger(__name__)


class Caps:
    """Caps of releases.

    Args:
        pool: Its policy says how much anybody may take.
        registry: Keeps what was fitted.
        reviewer: Has the model.
        clock: Tells the time.
    """

    def __init__(self, pool: Pool, registry: Registry, reviewer: Reviewer, clock: Callable[[], datetime]) -> None:
        self._pool, self._registry, self._reviewer, self._clock = pool, registry, reviewer, clock
        self._fleet = Fleet(registry)

    def of(self, spec: ReleaseSpec) -> CapFile | None:
        """Return the cap of a list, as far as anybody in it takes too much; what was fitted before is not again.

        Raises:
            Unavailable: The model cannot be brought to the list, or the fit took too long.
        """
        newcomers = self._newcomers(spec)
        key = self._key(spec, newcomers)
        row = self._registry.caps.find(key) or self._fit(spec, newcomers, key)
        return CapFile(sha256=row.sha256, size=row.size) if row.size else None

    def _newcomers(self, spec: ReleaseSpec) -> list[str]:
        """Name the contributors of a list whom no person looked at, and who were first released not long ago."""
        policy = self._pool.spec.policy
        if (policy.enrolment, policy.admission) != ("open", "open") or not policy.settle_days:
            return []
        settled = self._registry.releases.contributors_before(self._clock() - timedelta(days=policy.settle_days))
        return sorted({expert.contributor for expert in spec.experts} - settled)

    def _key(self, spec: ReleaseSpec, newcomers: Sequence[str]) -> str:
        """Name all that a fit depends on."""
        listed = [[expert.bundle, expert.contributor] for expert in spec.experts]
        beside = spec.calibration.sha256 if spec.calibration else None
        facts = [listed, newcomers, beside, spec.routing.model_dump(), self._most, self._reviewer.material]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def _most(self) -> float:
        return self._pool.spec.policy.max_capture

    def _fit(self, spec: ReleaseSpec, newcomers: Sequence[str], key: str) -> CapRow:
        beside = self._fleet.rounds.content(spec.calibration.sha256) if spec.calibration else None
        if len({expert.contributor for expert in spec.experts}) <= self._most:
            return self._registry.caps.keep(key, b"")  # everybody may take everything
        cap = self._reviewer.fit_cap(spec.experts, self._most, newcomers, beside)
        lowered = cap.biases.experts
        _log.info("capped", experts=len(lowered), modules=len(cap.biases.modules), excess=round(cap.excess, 3))
        return self._registry.caps.keep(key, cap.biases.content if lowered else b"")
