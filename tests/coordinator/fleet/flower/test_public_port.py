"""What a stranger may write on the public port, byte by byte: nothing but the nodes' own calls gets past the guard."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from coordinator.fleet.flower.gateway import App, Scope, public_door
from tests.stock import FLOWERS_OWN, make_link, served

pytestmark = FLOWERS_OWN
PULL, START, ACQUIRE = "/v1/fleet/pull-messages", "/v1/control/start-run", "/v1/runtime/acquire-task"


class Watched:
    """Flower's app, and the paths that reached it."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: object, send: object) -> None:
        self.paths.append(scope["path"])
        await self._app(scope, receive, send)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, list[str]]]:
    folder = tmp_path_factory.mktemp("link")
    app, fleet = make_link(folder)
    watched = Watched(app)
    with served(watched, public_door(watched, fleet)) as port:
        yield port, watched.paths


def say(port: int, spoken: bytes) -> bytes:
    """Send bytes as they are, and return all that comes back until the other side hangs up, or is silent."""
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(spoken)
        connection.settimeout(0.3)
        with contextlib.suppress(OSError):
            while piece := connection.recv(1 << 16):
                heard += piece
    return heard


def request(target: str, *headers: str, method: str = "POST", version: str = "1.1", body: bytes = b"") -> bytes:
    """Write a request, the last one of its connection."""
    return following(target, "connection: close", *headers, method=method, version=version, body=body)


def following(target: str, *headers: str, method: str = "POST", version: str = "1.1", body: bytes = b"") -> bytes:
    """Write a request behind which another may stand."""
    lines = [f"{method} {target} HTTP/{version}", "host: pool", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


SMUGGLED = request(START)
TRICKS = {
    "another path": request(START),
    "dots": request(f"/v1/fleet/..{START.removeprefix('/v1')}"),
    "encoded dots": request("/v1/fleet/%2e%2e/control/start-run"),
    "encoded slashes": request("/v1/fleet%2f..%2fcontrol%2fstart-run"),
    "encoded twice": request("/v1/fleet/%252e%252e/control/start-run"),
    "two slashes": request("//v1/control/start-run"),
    "backslashes": request("/v1/fleet\\..\\control\\start-run"),
    "a semicolon": request(f"{PULL};/..{START}"),
    "a null byte": request(f"{PULL}%00{START}"),
    "upper case": request(PULL.upper()),
    "a slash behind": request(f"{PULL}/"),
    "an absolute address": request(f"http://127.0.0.1{START}"),
    "an absolute address of a node's call": request(f"http://127.0.0.1{PULL}"),
    "an authority": request("127.0.0.1:1", method="CONNECT"),
    "an asterisk": request("*", method="OPTIONS"),
    "HTTP/1.0": request(START, version="1.0"),
    "HTTP/0.9": b"GET /docs\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100,
    "another method": request(PULL, method="PUT"),
    "the method overridden": request("/docs", "x-http-method-override: GET", "x-original-url: " + START),
    "a prefix of a proxy": request(START, "x-forwarded-prefix: /v1/fleet", "forwarded: for=127.0.0.1"),
    "a web socket": request(PULL, "upgrade: websocket", "connection: upgrade", method="GET"),
    "a runtime call": request(ACQUIRE),
    "garbage": bytes(range(256)) * 8,
    "lengths that differ": request(START, "content-length: 0", "content-length: 5"),
    "a length below zero": request(START, "content-length: -1"),
    "a length that is no number": request(START, "content-length: 0x10"),
    "chunks that are none": request(START, "transfer-encoding: chunked", body=b"zz\r\n\r\n"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_nothing_but_the_nodes_calls_reaches_flower(door: tuple[int, list[str]], trick: str) -> None:
    port, reached = door
    del reached[:]
    heard = say(port, TRICKS[trick])
    assert not reached
    assert heard == b"" or heard.split()[1] in (b"400", b"404"), heard[:200]


BEHIND = {
    "chunks and a length": following(PULL, "content-length: 0", "transfer-encoding: chunked", body=b"0\r\n\r\n"),
    "one after the other": following(PULL, "transfer-encoding: chunked", body=b"0\r\n\r\n"),
    "an unknown encoding": following(PULL, "transfer-encoding: xchunked", "content-length: 0"),
    "a space before the colon": following(PULL, "content-length : 0"),
    "inside a body": following(PULL, f"content-length: {len(SMUGGLED)}"),
    "behind HTTP/1.0": following(PULL, version="1.0"),
}


@pytest.mark.parametrize("first", BEHIND.values(), ids=BEHIND)
def test_a_request_behind_another_one_is_judged_by_itself(door: tuple[int, list[str]], first: bytes) -> None:
    port, reached = door
    del reached[:]
    heard = say(port, first + SMUGGLED)
    assert set(reached) <= {PULL}
    assert heard


def test_a_node_without_a_key_gets_no_further(door: tuple[int, list[str]]) -> None:
    port, reached = door
    for path in ("pull-messages", "push-messages", "activate-node", "get-fab", "push-object"):
        heard = say(port, request(f"/v1/fleet/{path}", "content-type: application/protobuf"))
        assert heard.split()[1] == b"401", heard[:200]
    assert reached


def endless(port: int, first: bytes, piece: bytes, most: int) -> int:
    """Send without end, and tell how many bytes it took until the other side hung up."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection, contextlib.suppress(OSError):
        connection.sendall(first)
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    return sent


@pytest.mark.parametrize(
    "first", [b"POST ", request(PULL)[:-4] + b"\r\nx-long: ", request(PULL)[:-2]], ids=["path", "header", "headers"]
)
def test_headers_have_an_end(door: tuple[int, list[str]], first: bytes) -> None:
    piece = b"a: b\r\n" * 2000 if first.endswith(b"\n") else b"a" * 12_000
    assert endless(door[0], first, piece, 64 << 20) < 16 << 20


def test_a_body_has_an_end(door: tuple[int, list[str]]) -> None:
    first = request(PULL, "content-type: application/protobuf", "transfer-encoding: chunked")
    assert endless(door[0], first, b"10000\r\n" + b"\0" * (1 << 16) + b"\r\n", 64 << 20) < 16 << 20
