"""A loopback line that is cut at random bytes, or lets few through."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECE = 16 << 10


class RoughLine:
    """Forwards connections to a port, the first ones not to their end.

    Args:
        upstream: Port of the server.
        cuts: How many connections are cut; those that come after them are left alone.
        most: Bytes, of both directions, after which one is cut at the latest.
        pause_s: Rest after every piece of 16 KiB, in seconds.
        seed: Of where the cuts are.
    """

    def __init__(self, upstream: int, *, cuts: int = 0, most: int = 1, pause_s: float = 0.0, seed: int = 0) -> None:
        self._upstream, self._most, self._pause = upstream, most, pause_s
        self._draw, self._lock = random.Random(seed), threading.Lock()
        self._left = cuts
        self.cut: list[int] = []
        """How much of its last piece each that was cut let through."""
        self.passed = 0
        """Bytes towards the server."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        """Accept until closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _connect(self, client: socket.socket) -> None:
        """Look after one connection, and close both of its ends."""
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._upstream)) as server:
            with self._lock:
                budget = [self._draw.randrange(1, self._most) if self._left > 0 else -1]
                self._left -= 1
            back = threading.Thread(target=self._pump, args=(server, client, budget), daemon=True)
            back.start()
            self._pump(client, server, budget)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, budget: list[int]) -> None:
        """Forward what comes, as far as the connection's budget goes; a negative one has no end."""
        with suppress(OSError):
            while data := source.recv(_PIECE):
                with self._lock:
                    if over := 0 <= budget[0] <= len(data):
                        data = data[: budget[0]]
                        self.cut.append(len(data))
                    budget[0] -= len(data) if budget[0] >= 0 else 0
                    self.passed += len(data) if sink.getpeername()[1] == self._upstream else 0
                sink.sendall(data)
                if over:
                    break
                time.sleep(self._pause)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def rough(upstream: int, *, cuts: int = 0, most: int = 1, pause_s: float = 0.0, seed: int = 0) -> Iterator[RoughLine]:
    """Run such a line for the length of a block."""
    line = RoughLine(upstream, cuts=cuts, most=most, pause_s=pause_s, seed=seed)
    thread = threading.Thread(target=line.run, daemon=True)
    thread.start()
    try:
        yield line
    finally:
        line.close()
        thread.join(10)
