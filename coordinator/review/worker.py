"""The worker: takes bundles from received to released, by turns, and keeps the release fresh and fit to answer with."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from coordinator.admission.limited_process import CheckFailedError
from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.lifecycle import State
from coordinator.policy.next_release import next_release
from coordinator.policy.switches import Switch
from coordinator.registry.registry import Registry
from coordinator.registry.tables import BundleRow
from coordinator.review.bundle_cache import Cache
from coordinator.review.caps import Caps
from coordinator.review.notes import note
from coordinator.review.probe import BlamedError, Reviewer
from coordinator.review.turns import Turns
from protocol.bundle import Bundle
from protocol.documents import Pool
from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.log.checkpoint import Checkpoint
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
_TURNS = 100
"""After so many, what rests and what was revoked is looked at again."""
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
        checkpoint: Signs the log as it is; every release holds its text.
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
        checkpoint: Callable[[], Checkpoint],
    ) -> None:
        self._pool, self._identity, self._registry, self._checkpoint = pool, identity, registry, checkpoint
        self._fleet = Fleet(registry)
        self._cache, self._check, self._reviewer, self._clock = cache, check, reviewer, clock
        self._put_off: dict[str, tuple[timedelta, datetime]] = {}
        self._turns, self._caps = Turns(registry), Caps(pool, registry, reviewer, clock)
        self._undecided: set[str] = set()
        """Digests of quarantined bundles with which the worker is done until a person decides."""
        self._audited: set[str] = set()
        """Digests of released bundles that were examined."""
        self._apart: set[str] = set()
        """Digests of those that were found at fault and are not the worker's to take out."""
        self._capped_at = clock()
        """When a cap is fitted again that could not be."""

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

        def told() -> bool:
            return stopped is not None and stopped.is_set()

        if Switch.REGISTRY in self._registry.switches.thrown():  # whatever is found out could not be kept
            return False
        done = False
        for row in self._registry.bundles.of_revoked_keys():
            done = self._attempt(row, self._turn_away) or done
        done = self._audit(told) or done
        had: set[str] = set()
        while not told():
            done = self._tidy() or done  # a yank waits for one review, however many bundles do
            thrown = self._registry.switches.thrown()
            if Switch.REGISTRY in thrown:
                break
            frozen = Switch.POOL in thrown
            turn = self._turns.next(had | self._resting(), self._undecided, frozen=frozen)
            if turn is None or len(had) == _TURNS:
                break
            had.add(turn.digest)
            advanced = self._advance(turn.digest)
            if advanced or turn.digest in self._resting():
                self._turns.took(turn)
            done = advanced or done
        return done

    def _advance(self, digest: str) -> bool:
        """Take a bundle as far as it goes."""
        works = {State.RECEIVED: self._verify, State.QUARANTINED: self._admit, State.ACCEPTED: self._release}
        done, before = False, None
        while (
            (row := self._registry.bundles.find(digest))
            and row.state != before
            and State(row.state) in works
            and (row.state == State.RECEIVED or self._may_go_on(row))
        ):
            before = row.state
            done = self._attempt(row, works[State(row.state)]) or done
        return done

    def _may_go_on(self, row: BundleRow) -> bool:
        """Tell whether a bundle may be let in or released now: the pool is not frozen, and the key not paused."""
        contributor = self._registry.contributors.find(row.contributor)
        frozen = Switch.POOL in self._registry.switches.thrown()
        return not frozen and contributor is not None and contributor.state == "active"

    def _audit(self, told: Callable[[], bool]) -> bool:
        """Examine what was released by other rules, or before there were any: a newcomer must not be blamed for it."""
        newest, done = self._newest(), False
        listed = {expert.bundle for expert in newest.spec.experts} if newest else set[str]()
        for digest in listed - self._audited - self._resting():
            row = None if told() else self._registry.bundles.find(digest)
            if row is not None and row.state == State.RELEASED:
                done = self._attempt(row, self._examine) or done
        return done

    def _examine(self, row: BundleRow) -> bool:
        try:
            self._reviewer.examine(self._released(row))
        except Refused as verdict:
            return self._blame({row.digest: verdict})
        except CheckFailedError as error:
            _log.warning("audit failed", bundle=row.digest, how=str(error))
            self._pause(row)
            return False
        self._audited.add(row.digest)
        return False

    def _blame(self, verdicts: dict[str, Refused]) -> bool:
        """Take out experts that are at fault; where an operator let them in, an operator must."""
        done = False
        for digest, verdict in verdicts.items():
            row = self._registry.bundles.find(digest)
            if row is None or digest in self._apart:
                continue
            _log.error("at fault", bundle=digest, name=row.name, code=verdict.code.name, message=verdict.message)
            if self._pool.spec.policy.admission == "open":
                step = State.YANKED if row.state == State.RELEASED else State.REFUSED
                self._registry.bundles.move(digest, step, actor="worker", reason=verdict, now=self._clock())
                self._reviewer.forget(digest)
            else:
                self._apart.add(digest)
                note(self._registry, digest, verdict, now=self._clock())
            self._audited.add(digest)
            done = True
        return done

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
        self._reviewer.forget(row.digest)
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
            f"The check of the bundle {error}, each of {TRIES} times.",
            "Ask the pool's operator, whose machine may be too small for it.",
        )
        tried = self._registry.bundles.check_failed(row.digest, verdict, now=self._clock())
        if tried >= TRIES:
            return self._refuse(row, verdict)
        _log.warning("check failed", bundle=row.digest, how=str(error), tried=tried)
        self._pause(row)
        return False

    def _admit(self, row: BundleRow) -> bool:
        """Examine a bundle, and accept it if the policy lets a worker do that and nothing gives cause for doubt."""
        new, newest = self._released(row), self._newest()
        try:
            self._reviewer.examine(new)
            reason = self._reviewer.doubt(row.digest, self._registry.bundles.held() - self._apart)
            reason = reason or self._reviewer.doubt_gates(new, newest.spec.experts if newest else ())
        except Refused as verdict:
            return self._refuse(row, verdict)
        except CheckFailedError as error:
            return self._check_failed(row, error)
        if reason is not None or row.code or self._pool.spec.policy.admission != "open":
            self._undecided.add(row.digest)  # an operator decides: greylag-coordinator experts accept
            return reason is not None and note(self._registry, row.digest, reason, now=self._clock())
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
            self._reviewer.examine(new)
            found = self._reviewer.try_expert(spec.experts, new, self._apart)
        except Refused as verdict:
            return self._refuse(row, verdict)
        except BlamedError as error:
            return self._blame(error.verdicts)
        except CheckFailedError as error:
            return self._check_failed(row, error)
        self._audited.add(new.bundle)
        spec = spec.model_copy(update={"cap": self._caps.of(spec)})
        _log.info("probed", bundle=new.bundle, losses_nats=dict(found.losses), experts=len(spec.experts))
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
        """Publish a release that leaves out what was yanked, renews the last one in time, or is capped otherwise."""
        spec = self._next([]) or self._capped_again()
        if spec is None:
            return False
        self._publish(spec)
        return True

    def _capped_again(self) -> ReleaseSpec | None:
        """Cap what was left of a list, or was calibrated or listed elsewhere; a yank did not wait for that."""
        newest = self._newest()
        if newest is None or self._clock() < self._capped_at:
            return None
        try:
            cap = self._caps.of(newest.spec)
        except GreylagError as error:
            _log.warning("not capped", code=error.code.name, message=error.message)
            self._capped_at = self._clock() + _LONGEST_PAUSE
            return None
        spec = self._next([], again=True) if cap != newest.spec.cap else None
        return spec and spec.model_copy(update={"cap": cap})

    def _next(
        self, accepted: list[ReleasedExpert], calibration: CalibrationFile | None = None, *, again: bool = False
    ) -> ReleaseSpec | None:
        held, now, newest = self._registry.bundles.held(), self._clock(), self._newest()
        return next_release(
            self._pool, newest, accepted=accepted, held=held, now=now, calibration=calibration, again=again
        )

    def _newest(self) -> Release | None:
        row = self._registry.releases.find()
        return read_release(row.envelope, self._pool) if row else None

    def _publish(self, spec: ReleaseSpec) -> None:
        before = self._newest()
        spec = spec.model_copy(update={"checkpoint": self._checkpoint().text()})
        self._registry.releases.publish(sign_release(spec, self._identity), now=self._clock())
        listed = {expert.bundle for expert in spec.experts}
        for expert in before.spec.experts if before else ():
            if expert.bundle not in listed:
                self._reviewer.forget(expert.bundle)
        _log.info("released", number=spec.number, experts=len(spec.experts))
