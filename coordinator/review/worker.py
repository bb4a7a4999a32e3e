"""The worker: takes bundles from received to released, one after the other, and keeps the release fresh."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import structlog

from coordinator.admission.limited_process import CheckFailedError
from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.lifecycle import State
from coordinator.policy.next_release import next_release
from coordinator.policy.switches import Switch
from coordinator.registry.registry import Registry
from coordinator.registry.tables import BundleRow
from coordinator.review.bundle_cache import Cache
from coordinator.review.probe import Reviewer
from protocol.bundle import Bundle
from protocol.documents import Pool
from protocol.errors import Code, GreylagError, Refused, Unavailable
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

TRIES = 4
"""How often a check that comes to no verdict is tried."""
_PAUSE, _LONGEST_PAUSE = timedelta(minutes=1), timedelta(hours=1)
"""First and longest pause before a bundle is worked on again that broke the worker's work."""
_log = structlog.get_logger(__name__)


class Worker:
    """Works off the registry; all that a restart forgets are pauses.

    Args:
        pool: The pool.
        identity: Signs releases.
        registry: Rows.
        cache: Opens bundles as verified folders.
        check: The content check; raises `Refused`, or `CheckFailedError` for no verdict, and returns why a person must
            decide, if one must.
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
        check: Callable[[Bundle], Refused | None],
        reviewer: Reviewer,
        clock: Callable[[], datetime],
    ) -> None:
        self._pool, self._identity, self._registry = pool, identity, registry
        self._fleet = Fleet(registry)
        self._cache, self._check, self._reviewer, self._clock = cache, check, reviewer, clock
        self._put_off: dict[str, tuple[timedelta, datetime]] = {}

    def run(self, stopped: threading.Event, *, interval_s: float) -> None:
        """Work until told to stop, whatever happens; stops between two bundles.

        Args:
            stopped: Set to stop.
            interval_s: Pause when there is nothing to do, in seconds.
        """
        while not stopped.is_set():
            busy = False
            try:
                busy = self.step(stopped)
            except GreylagError as error:
                # Nothing about a single bundle: the database rests, or the newest release cannot be read.
                _log.warning("waiting", code=error.code.name, message=error.message)
            except Exception:  # noqa: BLE001 - a pool whose worker ended waits until somebody looks
                _log.exception("failed")
            if not busy:
                stopped.wait(interval_s)

    def step(self, stopped: threading.Event | None = None) -> bool:
        """Do what there is to do now, and tell whether anything was done.

        Raises:
            GreylagError: The registry cannot be reached or read.
        """
        done, bundles = False, self._registry.bundles
        frozen = Switch.POOL in self._registry.switches.thrown()
        for find, work in (
            (bundles.of_revoked_keys, self._turn_away),
            (partial(bundles.all, State.RECEIVED), self._verify),
            (partial(bundles.of_active_keys, State.QUARANTINED), self._admit),
            (partial(bundles.of_active_keys, State.ACCEPTED), self._release),
        ):
            for row in find() if not (frozen and work in (self._admit, self._release)) else ():
                if stopped is not None and stopped.is_set():
                    return done
                done = self._attempt(row, work) or done
        return self._tidy() or done

    def _attempt(self, row: BundleRow, work: Callable[[BundleRow], bool]) -> bool:
        """Work on one bundle; what goes wrong, whatever it is, neither holds up the others nor is a verdict."""
        if row.digest in self._resting():
            return False
        try:
            return work(row)
        except GreylagError as error:  # lost bytes, a full disk, a rotten row; or an operator was quicker
            _log.warning("skipped", bundle=row.digest, code=error.code.name, message=error.message)
            if isinstance(error, Unavailable):
                self._pause(row)
        except Exception:  # noqa: BLE001 - whatever a bundle sets off must not stop the worker
            _log.exception("failed", bundle=row.digest)
            self._pause(row)
        return False

    def _resting(self) -> set[str]:
        """Digests of the bundles that are put off now."""
        return {digest for digest, (_, until) in self._put_off.items() if self._clock() < until}

    def _pause(self, row: BundleRow) -> None:
        """Leave a bundle alone for a while, each time for longer; a restart forgets it."""
        pause = min(2 * self._put_off[row.digest][0], _LONGEST_PAUSE) if row.digest in self._put_off else _PAUSE
        self._put_off[row.digest] = pause, self._clock() + pause

    def _refuse(self, row: BundleRow, verdict: Refused) -> bool:
        self._registry.bundles.move(row.digest, State.REFUSED, actor="worker", reason=verdict, now=self._clock())
        self._cache.drop(row.digest)
        self._put_off.pop(row.digest, None)
        return True

    def _turn_away(self, row: BundleRow) -> bool:
        return self._refuse(row, Refused(Code.KEY_REVOKED, "The key was revoked.", "Ask the pool's operator."))

    def _verify(self, row: BundleRow) -> bool:
        bundle = self._cache.open(row)
        try:
            suspicion = self._check(bundle)
        except Refused as verdict:
            return self._refuse(row, verdict)
        except CheckFailedError as error:
            return self._check_failed(row, error)
        steps = State.VERIFIED, State.QUARANTINED
        self._registry.bundles.move(row.digest, *steps, actor="worker", reason=suspicion, now=self._clock())
        return True

    def _check_failed(self, row: BundleRow, error: CheckFailedError) -> bool:
        """Check again later; what fails every time is the bundle's fault."""
        verdict = Refused(
            Code.VALIDATOR_FAILED,
            f"The check of the bundle's content {error}, each of {TRIES} times.",
            "Ask the pool's operator, whose machine may be too small for it.",
        )
        tried = self._registry.bundles.check_failed(row.digest, verdict, now=self._clock())
        if tried >= TRIES:
            return self._refuse(row, verdict)
        _log.warning("check failed", bundle=row.digest, how=str(error), tried=tried)
        self._pause(row)
        return False

    def _admit(self, row: BundleRow) -> bool:
        if self._pool.spec.policy.admission != "open" or row.code:
            return False  # an operator decides: greylag-coordinator experts accept
        self._registry.bundles.move(row.digest, State.ACCEPTED, actor="worker", now=self._clock())
        return True

    def _release(self, row: BundleRow) -> bool:
        """Put an accepted expert into a release, or into a candidate that contributors' held-out data decide about."""
        new, is_evaluated = self._released(row), self._pool.spec.policy.promotion.when == "evaluated"
        beside = self._fleet.candidates.place(row, self._resting()) if is_evaluated else []
        if beside is None:
            return False
        calibration = None
        if is_evaluated and (open_one := self._fleet.candidates.find()):
            # What it says beside its list, a larger one goes on to say.
            calibration = read_candidate(open_one.envelope, self._pool).spec.calibration
        spec = self._next([*(self._released(other) for other in beside), new], calibration)
        if spec is None:
            return False
        try:
            loss = self._reviewer.try_expert(spec.experts, new)
        except Refused as verdict:
            return self._refuse(row, verdict)
        _log.info("probed", bundle=new.bundle, loss_nats=loss, experts=len(spec.experts))
        if is_evaluated:
            candidate = sign_candidate(spec, self._identity)
            self._fleet.candidates.propose(candidate, now=self._clock())
            _log.info("proposed", candidate=candidate.digest, experts=len(spec.experts))
        else:
            self._publish(spec)
        return True

    def _released(self, row: BundleRow) -> ReleasedExpert:
        contributor = self._registry.contributors.find(row.contributor)
        if contributor is None:
            raise LookupError(f"bundle {row.digest} has no contributor row")
        return ReleasedExpert(name=row.name, contributor=contributor.name, bundle=row.digest)

    def _tidy(self) -> bool:
        """Publish a release that leaves out what was yanked, or that renews the last one in time."""
        if (spec := self._next([])) is None:
            return False
        self._publish(spec)
        return True

    def _next(self, accepted: list[ReleasedExpert], calibration: CalibrationFile | None = None) -> ReleaseSpec | None:
        held, now = self._registry.bundles.held(), self._clock()
        return next_release(self._pool, self._newest(), accepted=accepted, held=held, now=now, calibration=calibration)

    def _newest(self) -> Release | None:
        row = self._registry.releases.find()
        return read_release(row.envelope, self._pool) if row else None

    def _publish(self, spec: ReleaseSpec) -> None:
        before = self._newest()
        self._registry.releases.publish(sign_release(spec, self._identity), now=self._clock())
        listed = {expert.bundle for expert in spec.experts}
        for expert in before.spec.experts if before else ():
            if expert.bundle not in listed:
                self._cache.drop(expert.bundle)
        _log.info("released", number=spec.number, experts=len(spec.experts))
