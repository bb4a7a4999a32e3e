"""Refusals in the shape that OpenAI's clients read, with the codes and statuses of `protocol.errors`."""

from typing import Any, NamedTuple

import structlog

from protocol.errors import Code, GreylagError, Refused, Unavailable
from router.serving.users.rates import LimitReached

RETRY_S = 2
"""When whoever found the router busy should ask again, in seconds."""
_BAD_REQUEST, _UNKNOWN, _FORBIDDEN, _MISSING, _TOO_MANY, _LATER, _FAULT = 400, 401, 403, 404, 429, 503, 500
_TYPES = {
    _UNKNOWN: "authentication_error", _FORBIDDEN: "permission_error", _MISSING: "not_found_error",
    _TOO_MANY: "rate_limit_error", _LATER: "service_unavailable_error", _FAULT: "server_error",
}  # fmt: skip
_log = structlog.get_logger(__name__)


class Misplaced(Exception):  # noqa: N818 - carries a refusal
    """A refusal of one field of a request.

    Args:
        error: The refusal.
        param: Where the field stands, dotted.
    """

    def __init__(self, error: Refused, param: str) -> None:
        super().__init__(str(error))
        self.error, self.param = error, param


class Failure(NamedTuple):
    """What a client is told."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]
    code: Code


def failure_of(error: Exception, *, leaving: bool = False) -> Failure:
    """Say what the client may know of an error, and keep the rest for the log.

    Args:
        error: What happened.
        leaving: Whether the router is shutting down.
    """
    said = error.error if isinstance(error, Misplaced | LimitReached) else error
    if not isinstance(said, GreylagError):
        _log.error("failed", exc_info=error)
        said = Unavailable(Code.INTERNAL, "The router failed on this.", "Ask its operator for the log.")
    param = error.param if isinstance(error, Misplaced) else None
    retry_s = error.retry_s if isinstance(error, LimitReached) else RETRY_S
    status = _status(said.code, leaving=leaving)
    message = f"{said.message} {said.hint}".strip()
    body = {"message": message, "type": _TYPES.get(status, "invalid_request_error"), "param": param}
    headers = {"retry-after": str(retry_s)} if status in (_TOO_MANY, _LATER) else {}
    if status == _UNKNOWN:
        headers["www-authenticate"] = "Bearer"
    return Failure(status, {"error": body | {"code": said.code.name}}, headers, said.code)


def failure_of_address(status: int) -> Failure:
    """Say that an address, or what was to be done there, is not known here."""
    body = {"message": "There is nothing here that answers this.", "type": "invalid_request_error", "param": None}
    return Failure(status, {"error": body | {"code": Code.REQUEST_INVALID.name}}, {}, Code.REQUEST_INVALID)


def _status(code: Code, *, leaving: bool) -> int:
    if code is Code.BUSY:  # by the table it is both: there is too much to do, or the end is near
        return _LATER if leaving else _TOO_MANY
    status = code.fate.http
    return _LATER if code.fate.again and status > _FAULT else status
