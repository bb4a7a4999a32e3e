"""The guard lets the nodes' own calls through and nothing else."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.fleet.flower.gateway import SECRET_HEADER, Guard, Scope, header, inside, outside

SECRET = b"s" * 32
PULL = "/v1/fleet/pull-messages"


def status(allows: Callable[[Scope], bool], method: str, path: str, headers: dict[str, str] | None = None) -> int:
    """Ask a guarded app that answers 200 to everything."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(Guard(app, allows)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", PULL, 200),
        ("GET", "/health", 200),
        ("GET", PULL, 404),
        ("POST", "/health", 404),
        ("POST", "/v1/control/start-run", 404),
        ("POST", "/v1/control/register-node", 404),
        ("POST", "/v1/runtime/acquire-task", 404),
        ("POST", "/v1/fleet/../control/start-run", 404),
        ("POST", "/v1/fleet/anything-else", 404),
        ("POST", PULL + "/", 404),
        ("POST", "/" + PULL, 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
    ],
)
def test_outside_there_are_only_the_nodes_calls(method: str, path: str, expected: int) -> None:
    assert status(outside(frozenset({PULL})), method, path) == expected


def test_inside_operators_show_the_secret() -> None:
    allows, path = inside(SECRET), "/v1/control/start-run"
    assert status(allows, "POST", path) == 404
    assert status(allows, "POST", path, {SECRET_HEADER: "x"}) == 404
    assert status(allows, "POST", path, {SECRET_HEADER: header(b"t" * 32)}) == 404
    assert status(allows, "POST", path, {SECRET_HEADER: header(SECRET)}) == 200
    assert status(allows, "POST", "/v1/runtime/acquire-task") == 200  # Flower asks for the secret itself
    assert status(allows, "POST", PULL) == 404


def test_other_protocols_are_not_answered() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("reached")

    asyncio.run(Guard(app, lambda _: True)({"type": "websocket", "path": PULL}, lambda: None, lambda _: None))  # type: ignore[arg-type, return-value]


def test_a_body_that_is_too_large_is_hung_up_on() -> None:
    heard: list[str] = []
    pieces = [b"x" * 60, b"x" * 60]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.extend([(await receive())["type"] for _ in range(2)])

    async def receive() -> Any:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": PULL, "headers": []}
    asyncio.run(Guard(app, lambda _: True, most=100)(scope, receive, send))
    assert heard == ["http.request", "http.disconnect"]
