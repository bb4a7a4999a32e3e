"""A loopback TCP proxy that records both directions and can hold one of them back."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Sits between a client and a server.

    Args:
        upstream: Port of the server.
        hold_after: Bytes towards the server after which the proxy forwards no more until `release`.
        source: The loopback address that it comes from.
    """

    def __init__(self, upstream: int, hold_after: int | None = None, source: str = "127.0.0.1") -> None:
        self._upstream, self._source = upstream, source
        self._limit = hold_after
        self._released = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.2)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.held = threading.Event()
        self.sent = bytearray()
        """Everything that went to the server."""
        self.received = bytearray()
        """Everything that came back."""
        self.port: int = self._listener.getsockname()[1]
        if hold_after is None:
            self._released.set()

    def release(self) -> None:
        """Forward again."""
        self._released.set()

    def close(self) -> None:
        """Stop listening."""
        self._stopped.set()
        self._released.set()

    def run(self) -> None:
        """Accept until closed."""
        with self._listener:
            while not self._stopped.is_set():
                try:
                    client, _ = self._listener.accept()
                except TimeoutError:
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self._upstream), source_address=(self._source, 0))
                except OSError:
                    client.close()
                    continue
                for source, sink, kept in ((client, server, self.sent), (server, client, self.received)):
                    threading.Thread(target=self._pump, args=(source, sink, kept), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        try:
            while data := source.recv(65536):
                if kept is self.sent and self._limit is not None and len(kept) >= self._limit:
                    self.held.set()
                    self._released.wait(60)
                with self._lock:
                    kept.extend(data)
                sink.sendall(data)
        except OSError:
            pass  # one side is gone; closing both tells the other
        finally:
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


@contextmanager
def proxied(upstream: int, hold_after: int | None = None, source: str = "127.0.0.1") -> Iterator[Proxy]:
    """Run a proxy for the length of a block."""
    proxy = Proxy(upstream, hold_after, source)
    thread = threading.Thread(target=proxy.run, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(10)
