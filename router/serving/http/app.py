"""The addresses of the door."""

import re
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import structlog
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import Refused, Unavailable
from router.serving.http.door import Door
from router.serving.http.failures import Misplaced, failure_of_address
from router.serving.http.model_name import check_there, list_models
from router.serving.http.replies import ChatDialect, TextDialect
from router.serving.http.requests import ChatRequest, CompletionRequest
from router.serving.page.page import add_page
from router.serving.users.rates import LimitReached

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LOOKS = ("/health", "/ready", "/metrics")
_HUNG_UP, _UNREADY = 499, 503
_log = structlog.get_logger(__name__)


def build_app(door: Door) -> ASGIApp:
    """Lay out the addresses that a door answers at."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_questions(app, door)
    _add_looks(app, door)
    add_page(app, door)
    _add_failures(app, door)
    return _Noted(app, door)


def _add_questions(app: FastAPI, door: Door) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await door.answer(request, ChatRequest, ChatDialect())

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await door.answer(request, CompletionRequest, TextDialect())

    serving, born = door.serving, int(time.time())

    def model(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": born, "owned_by": serving.pool()}

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        door.admit(request)
        names = list_models(serving.engine.model.held, serving.pool(), serving.allowance)
        return JSONResponse({"object": "list", "data": [model(name) for name in names]})

    @app.get("/v1/models/{name:path}")
    async def one(request: Request, name: str) -> Response:
        door.admit(request)
        check_there(name, serving.engine.model.held, serving.pool())
        return JSONResponse(model(name))


def _add_looks(app: FastAPI, door: Door) -> None:
    serving = door.serving

    @app.get("/health")
    async def health() -> Response:
        trouble = serving.engine.load.trouble
        return JSONResponse({"status": trouble or "ok"}, _UNREADY if trouble else 200)

    @app.get("/ready")
    async def ready() -> Response:
        held = serving.engine.model.held
        expired = "" if held.answering else "The newest release has expired."
        trouble = serving.engine.load.trouble or expired or ("The router stops." if door.leaving else "")
        said = {"status": trouble or "ok", "release": held.newest.release, "trouble": serving.trouble()}
        return JSONResponse(said, _UNREADY if trouble else 200)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        door.admit(request)
        return Response(door.metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _add_failures(app: FastAPI, door: Door) -> None:
    async def failed(_: Request, error: Exception) -> Response:
        failure = door.fail(error)
        return JSONResponse(failure.body, failure.status, failure.headers)

    async def hung_up(_: Request, __: Exception) -> Response:
        return Response(status_code=_HUNG_UP)

    async def unknown(_: Request, error: Exception) -> Response:
        failure = failure_of_address(getattr(error, "status_code", 404))
        return JSONResponse(failure.body, failure.status, getattr(error, "headers", None))

    handlers: list[tuple[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = [
        *((kind, failed) for kind in (Refused, Unavailable, Misplaced, LimitReached, Exception)),
        (ClientDisconnect, hung_up),
        (HTTPException, unknown),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)


class _Noted:
    """Gives every request an id, its client's own where it has one, and notes how it went; never what was asked."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request, since, status = given if _ID.fullmatch(given) else uuid4().hex, time.monotonic(), _HUNG_UP

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request, user=None):
            try:
                await self._app(scope, receive, told)
            except Exception:  # noqa: BLE001, S110 - it was logged and answered, and is raised again for a server's log
                pass
            finally:
                path = getattr(scope.get("route"), "path", "other")
                self._door.metrics.answered(path, status)
                if path not in _LOOKS:
                    seconds = round(time.monotonic() - since, 3)
                    _log.info("answered over HTTP", method=scope["method"], path=path, status=status, seconds=seconds)
