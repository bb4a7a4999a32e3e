"""The bodies of requests: OpenAI's fields, and ours under `greylag`.

Types are strict. A field that OpenAI knows and this router does not is passed over where that changes nothing that was
asked for, and refused where it would.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.statement import Strict, first_invalid
from router.query.request import MAX_METHOD
from router.serving.engine import MAX_TOP_LOGPROBS
from router.serving.http.failures import Misplaced

MAX_BODY = strict_json.MAX_BYTES
"""Longest body, in bytes."""
MAX_ANSWERS = 32
"""Most answers to one request: its inputs, each `n` times."""
_MAX_TEXT_LOGPROBS = 5
_WITHOUT: dict[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "echo": (False,), "frequency_penalty": (0,), "function_call": ("none", "auto"),
    "functions": ([],), "logit_bias": ({},), "modalities": (["text"],), "prediction": (), "presence_penalty": (0,),
    "response_format": ({"type": "text"},), "suffix": ("",), "tool_choice": ("none", "auto"), "tools": ([],),
    "web_search_options": (),
}  # fmt: skip
"""What nobody here does, with what may stand there since it asks for nothing."""


class Extras(Strict):
    """How this request is routed, as `router.query.request.RoutingChoice`, and what is to be told of it."""

    method: str | None = None
    k: int | None = None
    temperature: float | None = None
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    explain: bool | Literal["shares"] = False
    """Whether the answer names its experts: with their shares of all routing, or of each token, too."""


class _Passing(BaseModel):
    """Base of what OpenAI may add fields to."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class StreamOptions(_Passing):
    """What a stream tells beside its tokens."""

    include_usage: bool | None = None


class Wanted(_Passing):
    """What both kinds of requests say; None stands for what was left out."""

    model: str = Field(max_length=2 * MAX_METHOD)
    n: int | None = Field(default=None, ge=1, le=MAX_ANSWERS)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    greylag: Extras = Extras()


class MessagePart(_Passing):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(_Passing):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[MessagePart, ...]


class ChatRequest(Wanted):
    """The body of /v1/chat/completions."""

    messages: tuple[Message, ...]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)


Tokens = tuple[Annotated[int, Field(ge=0)], ...]


class CompletionRequest(Wanted):
    """The body of /v1/completions."""

    prompt: str | Tokens | tuple[str, ...] | tuple[Tokens, ...]
    logprobs: int | None = Field(default=None, ge=0, le=_MAX_TEXT_LOGPROBS)


Body = TypeVar("Body", bound=Wanted)


def read_body(kind: type[Body], raw: bytes) -> Body:
    """Read a request.

    Raises:
        Refused: `REQUEST_INVALID`.
        Misplaced: Likewise, of one field.
    """
    fields = strict_json.loads(raw, what="The request", code=Code.REQUEST_INVALID, max_bytes=MAX_BODY)
    if not isinstance(fields, dict):
        raise Refused(Code.REQUEST_INVALID, "The request is no JSON object.")
    for name, nothing in _WITHOUT.items():
        if fields.get(name) is not None and fields[name] not in nothing:
            raise _wrong(name, "this router does not do that", "Leave it out.")
    try:
        return kind.model_validate_json(strict_json.dumps(fields))
    except ValidationError as error:
        raise _wrong(*first_invalid(error)) from error


def _wrong(place: str, reason: str, hint: str = "") -> Misplaced:
    return Misplaced(Refused(Code.REQUEST_INVALID, f"{place}: {reason}.", hint), place)
