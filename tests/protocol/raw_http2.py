"""A client that speaks just enough HTTP/2 to be rude: it sends by the byte, and leaves replies where they are."""

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf.message import Message

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS, ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4


class RawClient:
    """One connection.

    Args:
        port: Of a server on loopback.
        window: Bytes of a reply that it is ready to take; None for HTTP/2's 64 KiB.
        source: The loopback address that it comes from.
        ca: The server's CA certificate, for TLS.
    """

    def __init__(self, port: int, window: int | None = None, source: str = "127.0.0.1", ca: Path | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0))
        if ca is not None:
            context = ssl.create_default_context(cafile=ca)
            context.set_alpn_protocols(["h2"])
            self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
        settings = b"" if window is None else struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(SETTINGS, ACK, 0))
        self._last = -1
        self._heard = b""
        self._over: set[int] = set()

    def call(self, method: str, request: Message | None = None, *, end: bool = True) -> int:
        """Begin a call, with one request or none; give the number of its stream."""
        self._last += 2
        fields = {":path": f"/{method}", ":authority": "x", "content-type": "application/grpc", "te": "trailers"}
        # POST and http from the static table, the others in full (RFC 7541).
        packed = b"\x83\x86" + b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        self.socket.sendall(frame(HEADERS, END_HEADERS, self._last, packed))
        if request is not None:
            self.send(self._last, message(request.SerializeToString()), end=end)
        return self._last

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self.socket.sendall(frame(DATA, END_STREAM if end else 0, stream, data))

    def ended(self, *streams: int, within_s: float = 10.0) -> bool:
        """Read until the server has ended all these streams, or the connection; tell whether it did in time."""
        return self._read(lambda: self._over >= set(streams), within_s)

    def how_many_ended(self, number: int, within_s: float = 10.0) -> int:
        """Read until so many streams have ended, whichever they are; tell how many did in time."""
        self._read(lambda: len(self._over) >= number, within_s)
        return len(self._over)

    def _read(self, enough: Callable[[], bool], within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while not enough():
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                heard = self.socket.recv(1 << 16)
            except TimeoutError:
                return False
            except ConnectionError:
                return True
            if not heard:
                return True
            self._heard += heard
            while len(self._heard) >= 9 and len(self._heard) >= (size := 9 + int.from_bytes(self._heard[:3], "big")):
                kind, flags, stream = self._heard[3], self._heard[4], int.from_bytes(self._heard[5:9], "big")
                if kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM):
                    self._over.add(stream)
                self._heard = self._heard[size:]
        return True


@contextmanager
def rude(
    port: int, window: int | None = None, source: str = "127.0.0.1", ca: Path | None = None
) -> Iterator[RawClient]:
    client = RawClient(port, window, source, ca)
    try:
        yield client
    finally:
        client.socket.close()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def message(body: bytes, *, size: int | None = None) -> bytes:
    """A gRPC message; `size` announces more than is there."""
    return b"\0" + struct.pack(">I", len(body) if size is None else size) + body


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
