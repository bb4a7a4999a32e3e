"""Keep a running model at the newest release."""

import threading
from collections.abc import Callable

import structlog

from protocol.errors import GreylagError, Refused
from router.follow.workspace import Mirror
from router.model.routed_model import RoutedModel

STOP_S = 5.0
"""How long a round may take to end after it is told to, in seconds."""
_log = structlog.get_logger(__name__)


class Follower:
    """Polls for releases in a thread of its own and swaps them in.

    Whatever goes wrong (no network, a release that is not to be trusted, a full disk), the model
    keeps answering with the last good release, and the next round tries again; a release that the model itself
    refuses is not loaded a second time.

    Args:
        model: The running model.
        fetch: Given what it brought last, brings the newest release onto this machine, as `router.follow.pull.pull`.
        interval_s: Seconds between two rounds.
        held: What was fetched before.
    """

    def __init__(
        self,
        model: RoutedModel,
        fetch: Callable[[Mirror | None], Mirror],
        *,
        interval_s: float,
        held: Mirror | None = None,
    ) -> None:
        self._model, self._fetch, self._interval_s, self._held = model, fetch, interval_s, held
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._trouble: str | None = None
        self._refused: int | None = None
        """Number of the last release that the model refused."""

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
            Whether a new release was taken up.
        """
        try:
            mirror = self._held = self._fetch(self._held)
            if mirror.release.spec.number in (self._model.generation.release, self._refused):
                self._trouble = None
                return False
            self._take_up(mirror)
        except GreylagError as error:
            # Said once, not at every round.
            if error.message != self._trouble:
                _log.warning("release not taken up", code=error.code.name, message=error.message)
            self._trouble = error.message
            return False
        except Exception:  # noqa: BLE001 - a device out of memory, or a fault of ours, must not end the following
            _log.exception("release not taken up")
            return False
        self._trouble = None
        _log.info("release taken up", release=mirror.release.spec.number, experts=len(mirror.bundles))
        return True

    def _take_up(self, mirror: Mirror) -> None:
        try:
            self._model.take_up(mirror)
        except Refused:
            self._refused = mirror.release.spec.number
            raise

    def _run(self) -> None:
        while not self._stop.is_set():
            self.step()
            self._stop.wait(self._interval_s)
