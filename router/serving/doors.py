"""The doors of a router, side by side before one engine: gRPC, and HTTP where it is asked for."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.documents import read_pool
from protocol.wire.grpc_client import is_loopback
from protocol.wire.grpc_server import DRAIN_S, Listen, serve, stop_by_signals
from router.follow.workspace import POOL
from router.serving.engine import Engine
from router.serving.query_service import QueryService
from router.settings import ServingSettings

if TYPE_CHECKING:
    from router.serving.http.server import HttpServer

OnReady = Callable[[int, int | None], None]
"""Told the ports of gRPC, 0 where it is not asked for, and of HTTP, None likewise, once questions are answered."""
_LAST_WORDS_S = 2.0
"""What is left of the time in which calls may finish for those that the engine then ends, in seconds."""


async def serve_doors(
    workspace: Path,
    settings: ServingSettings,
    engine: Engine,
    trouble: Callable[[], str],
    on_ready: OnReady,
) -> None:
    """Answer at every door until SIGTERM or SIGINT, then let what runs come to its end, for a while.

    Args:
        workspace: Folder with the users, and what is known of the pool.
        settings: Where to listen, and what callers may ask for.
        engine: Who answers; it is stopped in the end.
        trouble: Says why the model is not at the newest release; empty where it is.
        on_ready: Called once questions are answered.

    Raises:
        Refused: `SETTINGS_INVALID` if an address cannot be listened on.
    """
    stopped, web = asyncio.Event(), None
    if settings.http is not None:
        web = _open_http(
            Listen(settings.http, settings.tls_cert, settings.tls_key), workspace, settings, engine, trouble
        )

    def ready(port: int) -> None:
        on_ready(port, web.port if web else None)

    asked = _answer_calls(settings, engine, trouble, ready, stopped) if settings.listen else _stay(ready, stopped)
    doors = [asked, _drain(engine, stopped), *([web.serve(stopped)] if web else [])]
    tasks = [asyncio.create_task(door) for door in doors]
    try:
        await asyncio.gather(*tasks)
    finally:
        stopped.set()  # where one door fails, all close
        await asyncio.wait(tasks)


async def _answer_calls(
    settings: ServingSettings,
    engine: Engine,
    trouble: Callable[[], str],
    ready: Callable[[int], None],
    stopped: asyncio.Event,
) -> None:
    service = QueryService(engine, settings.allowance, lambda: engine.load.trouble or trouble())
    await serve(
        Listen(settings.listen or "", settings.tls_cert, settings.tls_key), service.register, on_ready=ready,
        healthy=lambda: engine.model.held.answering and not engine.load.trouble, stopped=stopped,
    )  # fmt: skip


async def _stay(ready: Callable[[int], None], stopped: asyncio.Event) -> None:
    """Open no door, but end by the same signals."""
    stop_by_signals(stopped)
    ready(0)
    await stopped.wait()


async def _drain(engine: Engine, stopped: asyncio.Event) -> None:
    await stopped.wait()
    await asyncio.to_thread(engine.stop, DRAIN_S - _LAST_WORDS_S)


def _open_http(
    listen: Listen, workspace: Path, settings: ServingSettings, engine: Engine, trouble: Callable[[], str]
) -> "HttpServer":
    # Imported here, since what it stands on is an extra.
    from router.serving.http.door import Serving  # noqa: PLC0415
    from router.serving.http.model_name import NO_POOL  # noqa: PLC0415
    from router.serving.http.server import HttpServer  # noqa: PLC0415
    from router.serving.users.user_file import Users  # noqa: PLC0415

    known: list[str] = []

    def pool() -> str:
        if not known and (workspace / POOL).exists():
            known.append(read_pool((workspace / POOL).read_bytes()).spec.name)
        return known[0] if known else NO_POOL

    local = is_loopback(listen.address) and not settings.http_without_keys
    return HttpServer(listen, Serving(engine, Users(workspace), pool, settings.allowance, trouble, local=local))
