"""The worker: takes bundles from received to released, one after the other, and keeps the release fresh."""

import threading
from collections.abc import Callable
from datetime import datetime

import structlog

from coordinator.life import State
from coordinator.registry import Registry
from coordinator.releases import Change, next_release
from coordinator.review import Cache, Reviewer
from coordinator.tables import BundleRow
from protocol.bundle import Bundle
from protocol.errors import Code, Refused, Unavailable
from protocol.release import Pool, Release, ReleasedExpert, read_release, sign_release
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
            for row in self._registry.bundles(state):
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
        self._registry.move(row.digest, State.REFUSED, actor="worker", reason=reason, now=self._clock())
        self._cache.drop(row.digest)
        return True

    def _verify(self, row: BundleRow) -> bool:
        self._check(self._cache.open(row))
        self._registry.move(row.digest, State.VERIFIED, State.QUARANTINED, actor="worker", now=self._clock())
        return True

    def _quarantine(self, row: BundleRow) -> bool:
        self._registry.move(row.digest, State.QUARANTINED, actor="worker", now=self._clock())
        return True

    def _admit(self, row: BundleRow) -> bool:
        if self._pool.spec.policy.admission != "open":
            return False  # an operator decides: greylag-coordinator experts accept
        self._registry.move(row.digest, State.ACCEPTED, actor="worker", now=self._clock())
        return True

    def _release(self, row: BundleRow) -> bool:
        contributor = self._registry.contributor(row.contributor)
        if contributor is None:
            raise LookupError(f"bundle {row.digest} has no contributor row")
        new = ReleasedExpert(name=row.name, contributor=contributor.name, bundle=row.digest)
        change = self._next([new])
        if change is None:
            return False
        loss = self._reviewer.try_expert(change.spec.experts, new)
        _log.info("probed", bundle=row.digest, loss_nats=loss, experts=len(change.spec.experts))
        self._publish(change, {row.digest: State.RELEASED} | self._overtaken(row))
        return True

    def _overtaken(self, row: BundleRow) -> dict[str, State]:
        """Earlier bundles under the same name that still wait; letting one in later would turn back time."""
        return {
            other.digest: State.SUPERSEDED
            for other in self._registry.bundles(State.QUARANTINED, State.ACCEPTED)
            if (other.contributor, other.name) == (row.contributor, row.name) and other.sequence < row.sequence
        }

    def _tidy(self) -> bool:
        """Publish a release that leaves out what was yanked, or that renews the last one in time."""
        change = self._next([]) if self._registry.release() else None
        if change is not None:
            self._publish(change, {})
        return change is not None

    def _next(self, accepted: list[ReleasedExpert]) -> Change | None:
        gone = self._registry.digests(State.YANKED, State.SUPERSEDED, State.REFUSED)
        return next_release(self._pool, self._newest(), accepted=accepted, gone=gone, now=self._clock())

    def _newest(self) -> Release | None:
        row = self._registry.release()
        return read_release(row.envelope, self._pool) if row else None

    def _publish(self, change: Change, steps: dict[str, State]) -> None:
        release = sign_release(change.spec, self._identity)
        before = self._newest()
        self._registry.publish(release, steps | dict.fromkeys(change.superseded, State.SUPERSEDED), now=self._clock())
        listed = {expert.bundle for expert in change.spec.experts}
        for expert in before.spec.experts if before else ():
            if expert.bundle not in listed:
                self._cache.drop(expert.bundle)
        _log.info("released", number=change.spec.number, experts=len(change.spec.experts))
