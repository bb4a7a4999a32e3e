"""Serves the page, and tells it what may be asked; what is asked goes the way of any other client."""

from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from router.methods import METHODS
from router.serving.http.door import Door

_PARTS = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_HEADERS = {
    # Nothing is fetched from elsewhere, and nothing that a model writes can run or be framed.
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src 'self'; script-src 'self'; "
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def add_page(app: FastAPI, door: Door) -> None:
    """Put the page at `/`, and what it needs below `/page/`."""

    @app.get("/")
    async def page() -> Response:
        return _file("index.html", "text/html")

    @app.get("/page/facts")
    async def facts(request: Request) -> Response:
        door.admit(request)
        return JSONResponse(_facts(door))

    @app.get("/page/{name}")
    async def part(name: str) -> Response:
        kind = _PARTS.get(name)
        return _file(name, kind) if kind else Response(status_code=404)


def _file(name: str, kind: str) -> Response:
    return Response(files("router.serving.page").joinpath(name).read_bytes(), media_type=kind, headers=_HEADERS)


def _facts(door: Door) -> dict[str, object]:
    serving = door.serving
    held, allowance = serving.engine.model.held, serving.allowance
    own = held.newest.settings.method
    return {
        "pool": serving.pool(),
        "release": held.newest.release,
        "releases": list(reversed(held.releases)),
        "experts": [expert.full_name for expert in held.newest.pool.experts],
        "method": own,
        "methods": [method for method in METHODS if method in {own, *allowance.methods}],
        "single": "expert" in allowance.methods,
        "new_tokens": allowance.new_tokens,
        "chat": bool(serving.engine.model.base.tokenizer.chat_template),
        "keys": serving.users.needed,
        "trouble": serving.engine.load.trouble or serving.trouble(),
    }
