"""Keep a running model at the newest release."""

import math
import threading
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

import structlog

from protocol.errors import Code, GreylagError, Refused
from protocol.release import Release
from router.follow.workspace import Mirror
from router.model.routed_model import RoutedModel

STOP_S = 5.0
"""How long a round may take to end after it is told to, in seconds."""
LONGEST_S = 3600.0
"""Longest wait before a release that failed is tried again, in seconds."""
_PASSING = (Code.BAD_WIRE, Code.CHUNK_CORRUPT, Code.OFFSET_MISMATCH, Code.SETTINGS_INVALID)
"""What a line or a disk may do to a pull, beside what is `Unavailable`; says nothing about the release."""
_log = structlog.get_logger(__name__)


class _Failed(NamedTuple):
    """A release that was on offer and could not be taken up."""

    digest: str
    said: str
    wait_s: float
    again_at: float
    """On the monotonic clock, in seconds."""


class _TooEarly(Exception):  # noqa: N818 - no error
    """The release on offer failed a short while ago."""


class Follower:
    """Polls for releases in a thread of its own and swaps them in.

    Whatever goes wrong (no network, a release that is not to be trusted, a full disk), the model keeps answering with
    the last good release, and the next round tries again. A release that does not verify, or finds no memory, is tried
    again only after a while, twice as long each time, and one that came whole and is refused not at all, since what is
    loaded of it stays in memory; a newer one is not kept waiting by either.

    Args:
        model: The running model.
        fetch: Brings the newest release onto this machine, given `held`, `on_release` and `take_up` of
            `router.follow.pull.pull`.
        interval_s: Seconds between two rounds.
        held: What the model has taken up before.

    Attributes:
        trouble: Why the model is not at the newest release, in a sentence; empty where it is, as far as it is known.
    """

    def __init__(
        self, model: RoutedModel, fetch: Callable[..., Mirror], *, interval_s: float, held: Mirror | None = None
    ) -> None:
        self._model, self._fetch, self._interval_s, self._held = model, fetch, interval_s, held
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._offered: Release | None = None
        self._loading = self._taken = False
        self._failed: _Failed | None = None
        self._logged = ("", "")
        self.trouble = ""

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait a little for the round in progress: what it leaves unfinished, the next one continues."""
        self._stop.set()
        self._thread.join(STOP_S)

    def step(self) -> bool:
        """Do one round.

        Returns:
            Whether a new release was taken up and kept.
        """
        self._offered, self._loading, self._taken = None, False, False
        try:
            self._held = self._fetch(held=self._held, on_release=self._consider, take_up=self._take_up)
        except _TooEarly:
            return False
        except Exception as error:  # noqa: BLE001 - a device out of memory, or a fault of ours, must not end the following
            self._note(error, whole=self._loading)
            return False
        self._failed, self._logged, self.trouble = None, ("", ""), ""
        return self._taken

    def _take_up(self, mirror: Mirror) -> None:
        self._loading = True
        self._model.take_up(mirror)
        # Before it is written down: where there is no room for that, it is held against what comes next all the same.
        self._held, self._loading, self._taken = mirror, False, True
        _log.info("release taken up", release=mirror.release.spec.number, experts=len(mirror.bundles))

    def _consider(self, release: Release) -> None:
        self._offered, failed = release, self._failed
        if failed is not None and failed.digest == release.digest and monotonic() < failed.again_at:
            self.trouble = failed.said
            raise _TooEarly

    def _note(self, error: Exception, *, whole: bool) -> None:
        offered, code, meaning = self._offered, Code.INTERNAL, "This router failed; its log says why."
        if isinstance(error, GreylagError):
            code, meaning = error.code, error.code.fate.meaning
        what = f"Release {offered.spec.number}" if offered else "The newest release"
        # By the table: the error's own sentence may name a path, and whoever asks the router may read this.
        answers = offered and self._held and offered.digest == self._held.release.digest
        said = f"{what} was not {'kept' if answers else 'taken up'}: {meaning} [{code.name}]"
        if (said, str(error)) != self._logged:  # said once, not at every round
            say = _log.warning if isinstance(error, GreylagError) else _log.exception
            say("release not taken up", code=code.name, message=getattr(error, "message", str(error)))
        self._logged, self.trouble = (said, str(error)), said
        # Where the network or the disk failed nobody is at fault: what came stays, and the next round continues.
        if offered is not None and (whole or not (code.fate.again or code in _PASSING)):
            before = self._failed if self._failed and self._failed.digest == offered.digest else None
            wait_s = min(2 * before.wait_s, LONGEST_S) if before else self._interval_s
            hopeless = whole and isinstance(error, Refused) and code not in _PASSING
            again_at = math.inf if hopeless else monotonic() + wait_s
            self._failed = _Failed(offered.digest, said, wait_s, again_at)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.step()
            self._stop.wait(self._interval_s)
