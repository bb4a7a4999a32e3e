"""Chats with a router over HTTP, word by word, in the dialect of OpenAI's API. Needs no torch."""

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from protocol.errors import Code, GreylagError, Refused, Unavailable
from router.query.request import Turn

_CONNECT_S, _NEXT_S = 10.0, 300.0
"""Longest wait for a connection, and for the next token, in seconds."""
_DONE = "[DONE]"
_URL = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?/?$")


class Piece(NamedTuple):
    """A token of an answer."""

    text: str
    """What it adds, which may be nothing."""
    token: int
    """Which of the answer's it is, from 0 on."""


@dataclass
class Told:
    """What a router tells of an answer once it is over."""

    release: int = 0
    method: str = ""
    reason: str = ""
    """`stop` or `length`."""
    experts: list[tuple[str, float]] = field(default_factory=list)
    """Names and shares of all routing, largest first."""
    tokens: list[list[tuple[str, float]]] = field(default_factory=list)
    """Experts of each token of the answer, most first; the last one, which nobody read, is left out."""


@dataclass(frozen=True)
class Wish:
    """How answers are to be made."""

    method: str = ""
    expert: str = ""
    """The only one to answer, as `contributor/name`."""
    release: int | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    explain: bool = False
    """Whether each token's experts are told, too, and not the answer's alone."""

    def model(self, pool: str) -> str:
        """Name the model that fits."""
        how = f"/expert:{self.expert}" if self.expert else f"/method:{self.method}" if self.method else ""
        return pool + (f"@{self.release}" if self.release else "") + how


class ChatClient:
    """Asks one router.

    Args:
        url: Where it answers over HTTP.
        key: The user's, if it wants one.
        ca: The router's CA certificate, PEM; None for the system's.

    Raises:
        Refused: `REQUEST_INVALID` for what is no URL, `UNTRUSTED` for a certificate that cannot be read.
    """

    def __init__(self, url: str, key: str = "", ca: Path | None = None) -> None:
        try:
            trust: ssl.SSLContext | bool = ssl.create_default_context(cafile=ca) if ca else True
        except (OSError, ssl.SSLError) as error:
            raise Refused(Code.UNTRUSTED, f"The certificate {ca} cannot be read.", "Give a PEM file.") from error
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(_NEXT_S, connect=_CONNECT_S)
        if not _URL.match(url):
            what = f"{url:.200} is no address of a router."
            raise Refused(Code.REQUEST_INVALID, what, "Give one such as http://127.0.0.1:8080")
        self._http = httpx.Client(base_url=url, headers=headers, verify=trust, timeout=timeout)
        self._address = url

    def facts(self) -> dict[str, Any]:
        """Ask which pool, releases, experts and methods there are.

        Raises:
            Refused: `USER_KEY`, or `BAD_WIRE` for what is no router's answer.
            Unavailable: `UNREACHABLE`.
        """
        with self._reached():
            reply = self._http.get("/page/facts")
            _check(reply)
            found = reply.json()
        if not isinstance(found, dict) or "pool" not in found:
            raise _no_router()
        return found

    def ask(self, talk: list[Turn], wish: Wish, facts: dict[str, Any]) -> Iterator[Piece | Told]:
        """Ask the last of some turns, and iterate over the answer's tokens and what is told of it in the end.

        Where the base cannot chat, the last turn is asked alone.

        Raises:
            Refused: Whatever the router refuses.
            Unavailable: `UNREACHABLE`, also if the answer breaks off, or what the router lacks.
        """
        shared = {
            "model": wish.model(facts["pool"]), "stream": True, "max_tokens": wish.max_tokens,
            "temperature": wish.temperature, "greylag": {"explain": True if wish.explain else "shares"},
        }  # fmt: skip
        body: dict[str, Any] = (
            {"messages": talk, "logprobs": True} if facts["chat"] else {"prompt": talk[-1]["content"], "logprobs": 0}
        )
        path, at = ("/v1/chat/completions" if facts["chat"] else "/v1/completions"), 0
        told = Told()
        with self._reached(), self._http.stream("POST", path, json=shared | body) as reply:
            if not reply.is_success:
                reply.read()
            _check(reply)
            for event in _events(reply):
                for choice in event.get("choices", ()):
                    text = choice.get("delta", choice).get("content") or choice.get("text") or ""
                    logprobs = choice.get("logprobs") or {}
                    if text:
                        yield Piece(text, at)
                    at += len(logprobs.get("content") or logprobs.get("tokens") or ())
                    _take(told, choice)
        yield told

    def close(self) -> None:
        """Hang up."""
        self._http.close()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            what = f"The router at {self._address} cannot be reached: {error or type(error).__name__}."
            raise Unavailable(Code.UNREACHABLE, what, "Is `greylag-router serve --http` running there?") from error
        except (json.JSONDecodeError, UnicodeError, LookupError, AttributeError, TypeError) as error:
            raise _no_router() from error


def _events(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in reply.iter_lines():
        data = line.removeprefix("data: ")
        if data == _DONE:
            return
        if data:
            event = json.loads(data)
            if "error" in event:
                raise _said(event["error"])
            yield event
    raise Unavailable(Code.UNREACHABLE, "The answer broke off.", "Ask again.")


def _take(told: Told, choice: dict[str, Any]) -> None:
    told.reason = choice.get("finish_reason") or told.reason
    if why := choice.get("greylag"):
        told.release, told.method = why["release"], why["method"]
        told.experts = _named(why.get("experts", ()))
        told.tokens = [_named(each["experts"]) for each in why.get("tokens", ()) if each["of"] == "output"]


def _named(experts: Any) -> list[tuple[str, float]]:
    return [(str(each["name"]), float(each["share"])) for each in experts]


def _check(reply: httpx.Response) -> None:
    if reply.is_success:
        return
    try:
        said = reply.json()["error"]
        error = _said(said)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _no_router() from None
    raise error


def _said(error: dict[str, Any]) -> GreylagError:
    name = str(error.get("code"))
    code = Code[name] if name in Code.__members__ else Code.BAD_WIRE
    return (Unavailable if code.fate.again else Refused)(code, str(error["message"])[:1000])


def _no_router() -> Refused:
    return Refused(Code.BAD_WIRE, "What answers there is no router of this kind.", "Check the address.")
