"""A bound on calls that hold a thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from protocol.errors import Code, Unavailable

MAX_STREAMS = 24
"""Files on their way in, and as many out, at once; the rest of a server's calls is left to short ones."""


Context = grpc.aio.ServicerContext[Any, Any]


class Streams:
    """Counts open streams, so that slow or silent ones cannot take every call that a server has.

    Args:
        most: How many may be open at once.
    """

    def __init__(self, most: int = MAX_STREAMS) -> None:
        self._most, self._open = most, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Keep a place for the length of a stream.

        Raises:
            Unavailable: `BUSY` if there is none.
        """
        if self._open >= self._most:
            raise Unavailable(Code.BUSY, "Too many files are on their way at once.", "Try again in a minute.")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
