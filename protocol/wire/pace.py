"""How soon whom is listened to, while there is more to listen to than time."""

import asyncio
from collections.abc import Callable
from itertools import islice

from protocol.errors import Code, Unavailable

BUSY_HZ = 100.0
"""So many calls a second, of everybody together, are answered as they come."""
SHARE_HZ, BURST = 5.0, 100.0
"""Calls a second for one network while there are more in all, and how many it may have saved up."""
FAULT = 10.0
"""What a refused call counts for: who sends nonsense waits for longer."""
PATIENCE_S = 2.0
"""How long a call waits for its turn before it is refused, in seconds: whoever asks for too much waits, too."""
ALONE_S = 10.0
"""After so many seconds without a call of another network there is nobody who could be kept waiting."""
_MOST = 1 << 12


class Pace:
    """Lets calls begin as they come while there are few, or one network calls, and else so many a second for each.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._everybody = _Bucket(BUSY_HZ, BUSY_HZ, clock())
        self._networks: dict[str, _Bucket] = {}

    async def turn(self, network: str) -> None:
        """Wait until a call of a network may begin (`BUSY` if that would take too long, after a while)."""
        wait = self.wait_s(network)
        await asyncio.sleep(min(wait, PATIENCE_S))
        if wait > PATIENCE_S:
            raise Unavailable(Code.BUSY, "You ask for more than your share.", "Try again in a minute.")

    def wait_s(self, network: str) -> float:
        """Count a call, and say how long it has to wait, in seconds; beyond `PATIENCE_S` it is not counted."""
        now, own = self._clock(), self._of(network)
        left, free = own.left(now), self._everybody.left(now)
        if self._is_alone(now) or (free >= 1 and left >= 0):
            self._everybody.take(1)
            return 0.0
        if (wait := own.wait_s(now)) <= PATIENCE_S:
            own.take(1)
            self._everybody.take(1)
        return wait

    def blame(self, network: str) -> None:
        """Count a call that was refused."""
        self._of(network).take(FAULT)

    def _is_alone(self, now: float) -> bool:
        """Tell whether nobody called lately but whoever calls now, who is the last."""
        before = next(islice(reversed(self._networks.values()), 1, None), None)
        return before is None or now - before.at > ALONE_S

    def _of(self, network: str) -> "_Bucket":
        # Whoever was not heard of for longest is forgotten.
        bucket = self._networks.pop(network, None) or _Bucket(SHARE_HZ, BURST, self._clock())
        self._networks[network] = bucket
        if len(self._networks) > _MOST:
            del self._networks[next(iter(self._networks))]
        return bucket


class _Bucket:
    """Fills by so much a second, up to a brim, and may be owed as much."""

    def __init__(self, hz: float, brim: float, now: float) -> None:
        self._hz, self._brim, self._left = hz, brim, brim
        self.at = now
        """When somebody looked into it."""

    def left(self, now: float) -> float:
        """What is in it."""
        self._left, self.at = min(self._brim, self._left + (now - self.at) * self._hz), now
        return self._left

    def wait_s(self, now: float) -> float:
        """How long until it holds one, in seconds."""
        return max(0.0, (1 - self.left(now)) / self._hz)

    def take(self, much: float) -> None:
        self._left = max(self._left - much, -self._brim)
