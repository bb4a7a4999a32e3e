"""Peers of the fleet's public port that go silent, drip or do not read, byte by byte over loopback."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.fleet.flower import gateway, slow_peers
from coordinator.fleet.flower.gateway import public_door
from tests.stock import served

PATH = "/v1/fleet/pull"
HEAD = f"POST {PATH} HTTP/1.1\r\nhost: pool\r\n"
IDLE_S = 0.15


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read a request to its end, think a little, and answer with as much as was asked for."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    headers = dict(scope["headers"])
    await asyncio.sleep(float(headers.get(b"think", b"0")))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(int(headers.get(b"megabytes", b"0"))):
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
    await send({"type": "http.response.body", "body": b"end"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(slow_peers, "IDLE_S", IDLE_S)
    with served(app, public_door(app, frozenset({PATH}))) as port:
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def hung_up(connection: socket.socket, within_s: float = 5.0) -> bool:
    connection.settimeout(within_s)
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"", b""),
        (b"", b"x"),
        (HEAD.encode(), b"x"),
        (HEAD.encode() + b"content-length: 1000\r\n\r\n", b""),
        (HEAD.encode() + b"content-length: 1000\r\n\r\n", b"x"),
        (HEAD.encode() + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["nothing", "a slow line", "a slow header", "no body", "a slow body", "small chunks"],
)
def test_who_does_not_get_on_is_hung_up_on(port: int, first: bytes, piece: bytes) -> None:
    deadline = time.monotonic() + 5
    with connect(port) as connection, contextlib.suppress(OSError):
        connection.sendall(first)
        while not hung_up(connection, within_s=0.02):
            assert time.monotonic() < deadline, "it was never given up"
            connection.sendall(piece)


def test_who_leaves_the_answer_unread_is_hung_up_on(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(HEAD.encode() + b"megabytes: 99\r\ncontent-length: 0\r\n\r\n")
        time.sleep(4 * IDLE_S)
        connection.settimeout(5)
        heard = 0
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(1 << 20):
                heard += len(piece)
    assert heard < 99 << 20


def test_the_answers_own_time_is_not_the_peers(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(HEAD.encode() + f"think: {4 * IDLE_S}\r\ncontent-length: 0\r\n\r\n".encode())
        connection.settimeout(5)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_connection_that_is_used_again_and_again_is_kept(port: int) -> None:
    """As nodes do, who ask for work every few seconds."""
    with connect(port) as connection:
        for _ in range(12):
            connection.sendall(HEAD.encode() + b"content-length: 0\r\n\r\n")
            heard = b""
            while b"end" not in heard:
                piece = connection.recv(1 << 16)
                assert piece
                heard += piece
            time.sleep(IDLE_S / 3)


def test_who_hangs_on_does_not_keep_the_server_from_ending() -> None:
    door = public_door(app, frozenset({PATH}))
    assert door.timeout_graceful_shutdown == gateway.STOP_S
    door.timeout_graceful_shutdown = 1
    with contextlib.ExitStack() as hanging:
        with served(app, door) as there:
            for first in (b"", HEAD.encode(), HEAD.encode() + b"content-length: 9\r\n\r\n"):
                hanging.enter_context(connect(there)).sendall(first)
            start = time.monotonic()
        assert time.monotonic() - start < 3
