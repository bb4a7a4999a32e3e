"""What methods work out once for all requests: seconds to minutes, for which nobody waits who asks by another one."""

import threading
from collections.abc import Callable

import structlog

from protocol.errors import Code, GreylagError, Unavailable
from router.methods import find_method
from router.model.routed_model import RoutedModel
from router.serving.batches.seat import Seat

_log = structlog.get_logger(__name__)


class Preparation:
    """Prepares methods in threads of their own, side by side, and each once at a time.

    Args:
        model: The routed model.
        back: Takes requests whose method was prepared, or that wait for one that was; some may have failed.
    """

    def __init__(self, model: RoutedModel, back: Callable[[list[Seat]], None]) -> None:
        self._model, self._back = model, back
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Seat]] = {}

    @property
    def waiting(self) -> list[Seat]:
        """Requests that wait for it."""
        with self._lock:
            return [seat for seats in self._waiting.values() for seat in seats]

    def begin(self, seat: Seat) -> None:
        """Prepare what a request needs, or wait for whoever prepares the same method."""
        choice = seat.asked.choice
        method = find_method(choice.method or self._model.held.find(choice.release).settings.method)
        with self._lock:
            others = self._waiting.setdefault(method, [])
            others.append(seat)
            if len(others) > 1:
                return
        name = f"preparing {method}"
        threading.Thread(target=self._work, args=(method, seat), name=name, daemon=True).start()

    def _work(self, method: str, seat: Seat) -> None:
        prepare(self._model, seat)
        with self._lock:
            seats = self._waiting.pop(method)
        self._back(seats)


def prepare(model: RoutedModel, seat: Seat) -> None:
    """Prepare what a request needs; where that fails, the request does."""
    try:
        seat.prepared_for = model.held.find(seat.asked.choice.release)
        model.prepare(seat.asked.choice)
    except GreylagError as error:
        seat.fail(error)
    except Exception:  # noqa: BLE001 - whatever it is, whoever waits has to hear of it
        _log.exception("a method could not be prepared", method=seat.asked.choice.method)
        seat.fail(failed())


def failed() -> Unavailable:
    """Say that this router is at fault, and nothing more of why."""
    return Unavailable(Code.INTERNAL, "The router failed.", "Ask its operator for the log.")
