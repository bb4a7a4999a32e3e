"""A limit of seconds on what one bundle may cost."""

import time

from coordinator.admission.limited_process import CheckFailedError


class Deadline:
    """Begins when it is made.

    Args:
        seconds: The limit.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def check(self) -> None:
        """Raise `CheckFailedError` once the limit is over: no verdict, since the machine may be too slow."""
        if time.monotonic() > self._end:
            raise CheckFailedError(f"took longer than {self._seconds:g} s")
