"""The worker: takes bundles from received to released, one after the other, and keeps the release fresh."""

import threading
from collections.abc import Callable
from datetime import datetime

import structlog

from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.eligibility import judge_contributor
from coordinator.policy.lifecycle import State
from coordinator.policy.next_release import next_release, steps_to
from coordinator.registry.registry import Registry
from coordinator.registry.tables import BundleRow
from coordinator.review.bundle_cache import Cache
from coordinator.review.probe import Reviewer
from protocol.bundle import Bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused, Unavailable
from protocol.release import (
    CalibrationFile,
    Release,
    ReleasedExpert,
    ReleaseSpec,
    read_candidate,
    read_release,
    sign_candidate,
    sign_release,
)
from protocol.signing import Identity

_log = structlog.get_logger(__name__)


class Worker:
    """Works off the registry; holds nothing that a restart would not find again.

    Args:
        pool: The pool.
        identity: Signs releases.
        registry: Rows.
        cache: Opens bundles as verified folders.
        check: The content check; raises `Refused`.
        reviewer: Tries experts on the model.
        clock: Tells the time.
    """

    def __init__(
        self,
        pool: Pool,
        identity: Identity,
        registry: Registry,
        *,
        cache: Cache,
        check: Callable[[Bundle], None],
        reviewer: Reviewer,
        clock: Callable[[], datetime],
    ) -> None:
        self._pool, self._identity, self._registry = pool, identity, registry
        self._fleet = Fleet(registry)
        self._cache, self._check, self._reviewer, self._clock = cache, check, reviewer, clock

    def run(self, stopped: threading.Event, *, interval_s: float) -> None:
        """Work until told to stop; stops between two bundles.

        Args:
            stopped: Set to stop.
            interval_s: Pause when there is nothing to do, in seconds.
        """
        while not stopped.is_set():
            try:
                busy = self.step(stopped)
            except (Refused, Unavailable) as error:
                # Nothing about a single bundle: the database rests, or an operator yanked between two looks.
                _log.warning("waiting", code=error.code.name, message=error.message)
                busy = False
            if not busy:
                stopped.wait(interval_s)

    def step(self, stopped: threading.Event | None = None) -> bool:
        """Do what there is to do now, and tell whether anything was done.

        Raises:
            Unavailable: The registry cannot be reached.
        """
        done = False
        for state, work in (
            (State.RECEIVED, self._verify),
            (State.VERIFIED, self._quarantine),
            (State.QUARANTINED, self._admit),
            (State.ACCEPTED, self._release),
        ):
            for row in self._registry.bundles.all(state):
                if stopped is not None and stopped.is_set():
                    return done
                done = self._attempt(row, work) or done
        return self._tidy() or done

    def _attempt(self, row: BundleRow, work: Callable[[BundleRow], bool]) -> bool:
        """Work on one bundle; what is wrong with it or with its bytes does not hold up the others."""
        try:
            return work(row)
        except Refused as error:
            if error.code is not Code.STATE_CHANGE:
                return self._refuse(row, error)
            # An operator decided meanwhile; the next round sees it.
            _log.info("overtaken", bundle=row.digest, message=error.message)
        except Unavailable as error:
            _log.warning("skipped", bundle=row.digest, code=error.code.name, message=error.message)
        except Exception:  # noqa: BLE001 - whatever a bundle sets off must not stop the worker
            _log.exception("failed", bundle=row.digest)
        return False

    def _refuse(self, row: BundleRow, reason: Refused) -> bool:
        self._registry.bundles.move(row.digest, State.REFUSED, actor="worker", reason=reason, now=self._clock())
        self._cache.drop(row.digest)
        return True

    def _verify(self, row: BundleRow) -> bool:
        self._check(self._cache.open(row))
        self._registry.bundles.move(row.digest, State.VERIFIED, State.QUARANTINED, actor="worker", now=self._clock())
        return True

    def _quarantine(self, row: BundleRow) -> bool:
        self._registry.bundles.move(row.digest, State.QUARANTINED, actor="worker", now=self._clock())
        return True

    def _admit(self, row: BundleRow) -> bool:
        if self._pool.spec.policy.admission != "open":
            return False  # an operator decides: greylag-coordinator experts accept
        # A stolen key may have been revoked since its bundle came.
        contributor = self._registry.contributors.find(row.contributor)
        judge_contributor(contributor.state if contributor else None)
        self._registry.bundles.move(row.digest, State.ACCEPTED, actor="worker", now=self._clock())
        return True

    def _release(self, row: BundleRow) -> bool:
        new = self._released(row)
        if self._pool.spec.policy.promotion.when == "evaluated":
            return self._propose(row, new)
        spec = self._next([new])
        if spec is None:
            return False
        self._try(spec, new)
        self._publish(spec)
        return True

    def _propose(self, row: BundleRow, new: ReleasedExpert) -> bool:
        """Put an accepted expert into a candidate; contributors' held-out data decide about it."""
        beside = self._fleet.candidates.place(row)
        if beside is None:
            return False
        spec = self._next([*(self._released(other) for other in beside), new], self._proposed_calibration())
        if spec is None:
            return False
        self._try(spec, new)
        candidate = sign_candidate(spec, self._identity)
        self._fleet.candidates.propose(candidate, now=self._clock())
        _log.info("proposed", candidate=candidate.digest, experts=len(spec.experts))
        return True

    def _proposed_calibration(self) -> CalibrationFile | None:
        """What the open candidate says beside its list, which a larger one goes on to say."""
        row = self._fleet.candidates.find()
        return read_candidate(row.envelope, self._pool).spec.calibration if row else None

    def _released(self, row: BundleRow) -> ReleasedExpert:
        contributor = self._registry.contributors.find(row.contributor)
        if contributor is None:
            raise LookupError(f"bundle {row.digest} has no contributor row")
        return ReleasedExpert(name=row.name, contributor=contributor.name, bundle=row.digest)

    def _try(self, spec: ReleaseSpec, new: ReleasedExpert) -> None:
        loss = self._reviewer.try_expert(spec.experts, new)
        _log.info("probed", bundle=new.bundle, loss_nats=loss, experts=len(spec.experts))

    def _tidy(self) -> bool:
        """Publish a release that leaves out what was yanked, or that renews the last one in time."""
        spec = self._next([]) if self._registry.releases.find() else None
        if spec is not None:
            self._publish(spec)
        return spec is not None

    def _next(self, accepted: list[ReleasedExpert], calibration: CalibrationFile | None = None) -> ReleaseSpec | None:
        gone, now = self._registry.bundles.digests(State.YANKED, State.SUPERSEDED, State.REFUSED), self._clock()
        return next_release(self._pool, self._newest(), accepted=accepted, gone=gone, now=now, calibration=calibration)

    def _newest(self) -> Release | None:
        row = self._registry.releases.find()
        return read_release(row.envelope, self._pool) if row else None

    def _publish(self, spec: ReleaseSpec) -> None:
        before = self._newest()
        steps = steps_to(spec, self._registry.bundles.all())
        self._registry.releases.publish(sign_release(spec, self._identity), steps, now=self._clock())
        listed = {expert.bundle for expert in spec.experts}
        for expert in before.spec.experts if before else ():
            if expert.bundle not in listed:
                self._cache.drop(expert.bundle)
        _log.info("released", number=spec.number, experts=len(spec.experts))
