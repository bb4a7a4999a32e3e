"""How often whom is listened to, while there is more to listen to than time."""

import asyncio
from collections.abc import Callable

from protocol.errors import Code, Unavailable

BUSY_HZ = 100.0
"""So many calls a second, of everybody together, are answered as they come."""
SHARE_HZ, BURST = 5.0, 50.0
"""Calls a second for one network while there are more in all, and how many it may have saved up."""
PATIENCE_S = 2.0
"""How long a call waits for its turn before it is refused, in seconds: whoever asks for too much waits, too."""
_MOST = 1 << 12


class Pace:
    """Lets calls begin as they come while there are few, and else so many a second for each network.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._everybody = _Bucket(BUSY_HZ, BUSY_HZ, clock())
        self._buckets: dict[str, _Bucket] = {}

    async def turn(self, network: str) -> None:
        """Wait until a call of a network may begin (`BUSY` if that would take too long, after a while)."""
        wait = self.wait_s(network)
        if wait > PATIENCE_S:
            await asyncio.sleep(PATIENCE_S)
            raise Unavailable(Code.BUSY, "You ask for more than is there for you now.", "Try again in a minute.")
        if wait > 0:
            await asyncio.sleep(wait)

    def wait_s(self, network: str) -> float:
        """Count a call, and say how long it has to wait, in seconds; beyond `PATIENCE_S` it is not counted."""
        now = self._clock()
        bucket = self._buckets.pop(network, None) or _Bucket(SHARE_HZ, BURST, now)
        self._buckets[network] = bucket  # the last one, as it was just asked for
        while len(self._buckets) > _MOST:
            del self._buckets[next(iter(self._buckets))]
        own, free = bucket.wait_s(now), self._everybody.wait_s(now) <= 0
        if own > PATIENCE_S and not free:
            return own
        bucket.take()
        self._everybody.take()
        return 0.0 if free else max(own, 0.0)


class _Bucket:
    """So many calls a second, and some that were saved up."""

    def __init__(self, hz: float, burst: float, now: float) -> None:
        self._hz, self._burst, self._left, self._at = hz, burst, burst, now

    def wait_s(self, now: float) -> float:
        """How long until there is one more, in seconds."""
        self._left = min(self._burst, self._left + (now - self._at) * self._hz)
        self._at = now
        return (1 - self._left) / self._hz

    def take(self) -> None:
        self._left = max(self._left - 1, -self._burst)
