"""Connections that are none, and such as an attacker makes: after each the server must answer the next honest call."""

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from coordinator.conformance.case import Case, Play, Row, named
from coordinator.conformance.stage import Stage
from protocol.wire.grpc_client import check_address

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_HEADERS, ACK = 4, 1
_PATIENCE_S = 10.0
# POST and http out of HPACK's static table (RFC 7541), the path and the rest in full.
_FIELDS = {
    ":path": "/greylag.v1.Catalog/GetPool",
    ":authority": "x",
    "content-type": "application/grpc",
    "te": "trailers",
}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write a frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _field(name: str, value: str) -> bytes:
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


_CALL = b"\x83\x86" + b"".join(_field(name, value) for name, value in _FIELDS.items())
_HELLO = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)


@contextmanager
def _connection(stage: Stage, *, tls: bool) -> Iterator[socket.socket]:
    """Connect, over TLS and as a client of HTTP/2 if asked for; whom to is not checked, nothing secret is said."""
    plain = socket.create_connection(check_address(stage.address), _PATIENCE_S)
    if not tls:
        with plain:
            yield plain
        return
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with plain, context.wrap_socket(plain) as wrapped:
        yield wrapped


def _said(*pieces: bytes, tls: bool | None = None, hello: bool = True) -> Play:
    """Send bytes, and then read until the other side hangs up or has said nothing for a while."""

    def play(stage: Stage) -> None:
        with suppress(OSError), _connection(stage, tls=stage.tls if tls is None else tls) as peer:
            if hello:
                peer.sendall(_HELLO)
            for piece in pieces:
                peer.sendall(piece)
            _listen(peer)

    return play


def _listen(peer: socket.socket, quiet_s: float = 0.2) -> None:
    peer.settimeout(quiet_s)
    end = time.monotonic() + _PATIENCE_S
    with suppress(OSError):
        while time.monotonic() < end and peer.recv(1 << 16):
            pass


def _call(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, _CALL)


def _half_open(count: int) -> Play:
    """Hold many connections that say nothing."""

    def play(stage: Stage) -> None:
        with ExitStack() as peers:
            for _ in range(count):
                peers.enter_context(_connection(stage, tls=False))
            _alive(stage)

    return play


def _alive(stage: Stage) -> None:
    stage.wire.at("greylag.v1.Catalog/GetPool")


def _numbered(make: Callable[[int], bytes], count: int) -> bytes:
    return b"".join(make(2 * number + 1) for number in range(count))


def cases() -> list[Case]:
    """All of them."""
    error = struct.pack(">I", 8)
    rows: list[Row] = [
        ("nothing", _said(hello=False, tls=False), None),
        ("zeros", _said(bytes(4096), hello=False, tls=False), None),
        ("http-1", _said(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", hello=False, tls=False), None),
        ("plain-http-2", _said(_call(1), tls=False), None),
        ("ssh", _said(b"SSH-2.0-OpenSSH_9.9\r\n", hello=False, tls=False), None),
        ("200-connections-without-a-word", _half_open(200), None),
        ("http-1-inside", _said(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", hello=False), None),
        ("preface-cut", _said(PREFACE[:-5], hello=False), None),
        ("frame-of-16-mebibytes", _said(b"\xff\xff\xff" + frame(DATA, 0, 1)[3:]), None),
        ("frame-of-unknown-kind", _said(frame(0x77, 0xFF, 1, b"x" * 100)), None),
        ("data-of-no-call", _said(frame(DATA, 1, 1, b"x" * 100)), None),
        ("even-stream", _said(_call(2)), None),
        ("stream-numbers-backwards", _said(_call(9) + _call(1)), None),
        ("broken-headers", _said(frame(HEADERS, END_HEADERS, 1, b"\xff" * 200)), None),
        ("headers-without-path", _said(frame(HEADERS, END_HEADERS, 1, b"\x83\x86")), None),
        ("message-longer-than-it-is", _said(_call(1) + frame(DATA, 1, 1, b"\0\x7f\xff\xff\xffabc")), None),
        ("message-of-unknown-compression", _said(_call(1) + frame(DATA, 1, 1, b"\1\0\0\0\3abc")), None),
        ("1000-pings", _said(frame(PING, 0, 0, bytes(8)) * 1000), None),
        ("1000-settings", _said(frame(SETTINGS, 0, 0) * 1000), None),
        ("1000-calls-taken-back", _said(_numbered(
            lambda stream: _call(stream) + frame(RESET, 0, stream, error), 1000)), None),
        ("headers-without-end", _said(frame(HEADERS, 0, 1, _CALL) + frame(
            CONTINUATION, 0, 1, _field("x", "y" * 100) * 100) * 200), None),
        ("window-of-nothing", _said(
            frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)) + _call(1) + frame(DATA, 1, 1, bytes(5))), None),
        ("window-beyond-2^31", _said(frame(WINDOW, 0, 0, struct.pack(">I", (1 << 31) - 1)) * 2), None),
        ("goaway-and-on", _said(frame(GOAWAY, 0, 0, bytes(8)) + _call(1)), None),
        ("gone-in-the-middle", _said(_call(1) + frame(DATA, 0, 1, b"\0\0\0\0\x09ab")), None),
    ]  # fmt: skip
    return named("connection", rows)
