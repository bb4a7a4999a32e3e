"""What one request asks, a text or a chat, and may choose for itself: method, k, temperature, experts, release.

Needs no torch, so that the doors read and refuse a choice before the model wakes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

from pydantic import ConfigDict, SkipValidation, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.statement import first_invalid

MAX_K = 64
"""Most experts a token, as a release's own k."""
MAX_METHOD = 1000
"""Longest method with its argument, in letters."""
_ASSISTANT = "assistant"
Parsed = TypeVar("Parsed")


@with_config(ConfigDict(extra="forbid", strict=True))
class Turn(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


Chat = Sequence[Turn]
"""A chat up to where the assistant is to speak; the base's tokenizer writes it down, as in training."""
Input = str | Chat
Inputs = Input | Sequence[Input]
"""One input, or several."""


@dataclass(frozen=True)
class RoutingChoice:
    """How one request is routed; what it leaves open is the release's to say.

    Experts are named `name`, `contributor/name`, or `contributor/` for all experts of a contributor.

    Raises:
        Refused: `REQUEST_INVALID` for a figure out of range, or a method that is too long.
    """

    # A request is a stranger's JSON as often as a caller's Python.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    method: str | None = None
    """A routing method, as `router.methods.METHODS` lists them."""
    k: int | None = None
    """Experts a token, for methods that choose."""
    temperature: float | None = None
    """Divides the scores before the softmax, for methods that weigh; 1 is each method's own scale."""
    allow: tuple[str, ...] | None = None
    """The only experts that may answer; None for all of the release."""
    deny: tuple[str, ...] = ()
    """Experts that may not answer, whatever `allow` says."""
    release: int | None = None
    """Number of an earlier release that is still held; None for the newest."""

    def __post_init__(self) -> None:
        # Choices are compared and hashed; a caller may still write a list.
        for name in ("allow", "deny"):
            if isinstance(names := getattr(self, name), list):
                object.__setattr__(self, name, tuple(names))
        if self.method is not None and len(self.method) > MAX_METHOD:
            raise _out_of_range("the method's length", len(self.method), f"{MAX_METHOD} letters at most")
        if self.k is not None and not 1 <= self.k <= MAX_K:
            raise _out_of_range("k", self.k, f"a whole number from 1 to {MAX_K}")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise _out_of_range("temperature", self.temperature, "a finite number above 0")
        if self.release is not None and self.release < 1:
            raise _out_of_range("release", self.release, "a release's number, from 1 on")


DEFAULT = RoutingChoice()
"""All as the newest release says."""
Choices = RoutingChoice | Sequence[RoutingChoice]
"""One choice for a whole batch, or one for each of its inputs."""


@dataclass(frozen=True)
class TaskInput:
    """One input of a task, as a person writes it down to look at how it is routed."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    task: str
    input: SkipValidation[Input]
    oracle: str | None = None
    """The expert that was trained for the task, as `name` or `contributor/name`."""
    score: float | None = None
    """How well the model did on the input; a task's score is the mean."""


class Request(NamedTuple):
    """One input and how it is to be routed."""

    input: Input
    choice: RoutingChoice


def one_by_one(inputs: Inputs) -> list[Input]:
    """List inputs, of which there may be one alone."""
    alone = isinstance(inputs, str) or (len(inputs) > 0 and isinstance(inputs[0], Mapping))
    return [cast("Input", inputs)] if alone else list(cast("Sequence[Input]", inputs))


def check_inputs(inputs: Sequence[Input]) -> None:
    """Refuse what nobody can answer.

    Raises:
        Refused: `REQUEST_INVALID` if there is none, if one is empty, or for a chat in which the assistant speaks last.
    """
    texts = [[each] if isinstance(each, str) else [turn["content"] for turn in each] for each in inputs]
    if not texts or not all(text.strip() for each in texts for text in each or [""]):
        raise Refused(
            Code.REQUEST_INVALID, "A request needs at least one input, and no empty one.", "Leave empty inputs out."
        )
    if any(not isinstance(each, str) and each[-1]["role"] == _ASSISTANT for each in inputs):
        raise Refused(
            Code.REQUEST_INVALID, "In a chat the assistant has spoken last.", "End it where the assistant is to speak."
        )


def one_each(choices: Choices, inputs: int) -> list[RoutingChoice]:
    """Give every input its choice.

    Raises:
        Refused: `REQUEST_INVALID` if there are several choices, but not as many as inputs.
    """
    if isinstance(choices, RoutingChoice):
        return [choices] * inputs
    if len(choices) != inputs:
        raise Refused(
            Code.REQUEST_INVALID,
            f"There are {inputs} inputs and {len(choices)} routing choices.",
            "Give one choice for all inputs, or one for each.",
        )
    return list(choices)


def read_requests(lines: Iterable[str], default: RoutingChoice = DEFAULT) -> list[Request]:
    """Read requests from JSON Lines: objects with `input` or `messages`, and any field of `RoutingChoice`.

    Args:
        lines: One object a line; blank lines are passed over.
        default: Fields that a line leaves out are taken from here.

    Raises:
        Refused: `REQUEST_INVALID`, naming the line.
    """
    given = {name: value for name, value in vars(default).items() if value is not None}
    return [
        Request(asked, _parsed(_CHOICE, given | fields, where))
        for asked, fields, where in _read(lines, "Line {} of the requests")
    ]


def take_input(fields: object, where: str) -> Input:
    """Take the `input`, or the `messages`, out of what a line of JSON holds.

    Args:
        fields: The line's value; whatever else it holds stays.
        where: The line, for people.

    Raises:
        Refused: `REQUEST_INVALID`.
    """
    if not isinstance(fields, dict) or ("input" in fields) == ("messages" in fields):
        raise Refused(
            Code.REQUEST_INVALID,
            f'{where} is no object with an "input" or "messages".',
            'Write {"input": "..."}, or {"messages": [{"role": "user", "content": "..."}]}; more may stand beside it.',
        )
    name = "input" if "input" in fields else "messages"
    return _parsed(_INPUT[name], fields.pop(name), where, name)


def read_tasks(lines: Iterable[str]) -> list[TaskInput]:
    """Read JSON Lines of `task`, `input` or `messages` and, where they are known, `oracle` and `score`.

    Raises:
        Refused: `REQUEST_INVALID`, naming the line, or if there is none.
    """
    found = [
        replace(_parsed(_TASK, fields | {"input": ""}, where), input=asked)
        for asked, fields, where in _read(lines, "Line {} of the tasks")
    ]
    if not found:
        raise Refused(Code.REQUEST_INVALID, "The tasks hold no input.", 'Write lines {"task": "...", "input": "..."}.')
    return found


def _read(lines: Iterable[str], where: str) -> Iterator[tuple[Input, dict[str, Any], str]]:
    for number, fields in strict_json.read_lines(lines, where, Code.REQUEST_INVALID):
        yield take_input(fields, line := where.format(number)), fields, line


def _parsed(schema: TypeAdapter[Parsed], fields: object, where: str, name: str = "") -> Parsed:
    try:
        return schema.validate_json(strict_json.dumps(fields))
    except ValidationError as error:
        place, reason = first_invalid(error)
        place = ".".join(part for part in (name, place) if part)
        raise Refused(Code.REQUEST_INVALID, f"{where}: {place}: {reason}.", "Correct the line.") from error
    except Refused as error:
        raise Refused(error.code, f"{where}: {error.message}", error.hint) from error


def _out_of_range(name: str, found: float, expected: str) -> Refused:
    return Refused(Code.REQUEST_INVALID, f"{name} is {found}; expected {expected}.", "Correct the request.")


_CHOICE, _TASK = TypeAdapter(RoutingChoice), TypeAdapter(TaskInput)
_INPUT: dict[str, TypeAdapter[Any]] = {"input": TypeAdapter(str), "messages": TypeAdapter(list[Turn])}
