"""What comes in of a request, and whether its client still listens."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from protocol.errors import Code, Refused
from router.serving.http.requests import MAX_BODY

BODY_S = 30.0
"""How long a body may take to come, in seconds."""
_MOST_TAKEN = 8 * MAX_BODY
"""Of a body that is too long, what is read before it is refused, in bytes: who is hung up on while it sends reads no
refusal."""
_JSON = "application/json"
Result = TypeVar("Result")


async def read_whole(request: Request) -> bytes:
    """Read a request's body.

    Raises:
        Refused: `REQUEST_INVALID` for another type than JSON, or one that comes too slowly; `MESSAGE_TOO_LARGE`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        # So no page that a browser shows may send one unasked: for this type it asks the router first.
        raise Refused(Code.REQUEST_INVALID, f"The request's Content-Type is not {_JSON}.", "Send JSON, and say so.")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY:
                    body.clear()
                if size > _MOST_TAKEN:
                    break
                body += chunk
    except TimeoutError as error:
        what = f"The request's body took longer than {BODY_S:g} s."
        raise Refused(Code.REQUEST_INVALID, what, "Send it at once.") from error
    if size > MAX_BODY:
        what = f"The request's body is longer than {MAX_BODY} bytes."
        raise Refused(Code.MESSAGE_TOO_LARGE, what, "Split the request.")
    return bytes(body)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Work for a client as long as it listens, once its body is read.

    Raises:
        ClientDisconnect: It hung up; the work was cancelled.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
