"""How often something may happen, in all and for one network."""

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import datetime, timedelta

from protocol.errors import Code, Unavailable

_EVERYBODY = ""


class Rate:
    """Lets so many through an hour: a quarter of them for one network, as `protocol.wire.places.network_of` tells it.

    It is kept in memory, so that no address is written down; a restart forgets it.

    Args:
        hourly: How many in all.
        clock: Tells the time.
    """

    def __init__(self, hourly: int, clock: Callable[[], datetime]) -> None:
        self._shares = {True: hourly, False: max(hourly // 4, 1)}
        self._clock, self._lock = clock, threading.Lock()
        self._passed: dict[str, deque[datetime]] = defaultdict(deque)

    def take(self, network: str) -> None:
        """Count one more (`BUSY` if it is one too many)."""
        now = self._clock()
        with self._lock:
            for who, passed in list(self._passed.items()):
                while passed and passed[0] <= now - timedelta(hours=1):
                    passed.popleft()
                if not passed:
                    del self._passed[who]
            names = (_EVERYBODY, network)
            if any(len(self._passed.get(who, ())) >= self._shares[who == _EVERYBODY] for who in names):
                raise Unavailable(Code.BUSY, "Too many new keys came within an hour.", "Try again in an hour.")
            for who in names:
                self._passed[who].append(now)
