"""What one request may choose for itself: method, k, temperature, experts, release.

Needs no torch, so that the doors read and refuse a choice before the model wakes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.statement import first_invalid

MAX_K = 64
"""Most experts a token, as a release's own k."""


@dataclass(frozen=True)
class RoutingChoice:
    """How one request is routed; what it leaves open is the release's to say.

    Experts are named `name`, `contributor/name`, or `contributor/` for all experts of a contributor.

    Raises:
        Refused: `REQUEST_INVALID` for a figure out of range.
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


class Request(NamedTuple):
    """One input and how it is to be routed."""

    input: str
    choice: RoutingChoice


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
    """Read requests from JSON Lines: objects with `input` and any field of `RoutingChoice`.

    Args:
        lines: One object a line; blank lines are passed over.
        default: Fields that a line leaves out are taken from here.

    Raises:
        Refused: `REQUEST_INVALID`, naming the line.
    """
    return [_read(line, number, default) for number, line in enumerate(lines, 1) if line.strip()]


def _read(line: str, number: int, default: RoutingChoice) -> Request:
    where = f"Line {number} of the requests"
    fields = strict_json.loads(line.encode(), what=where, code=Code.REQUEST_INVALID)
    if not isinstance(fields, dict) or not isinstance(fields.get("input"), str):
        raise Refused(
            Code.REQUEST_INVALID,
            f'{where} is no object with an "input" of text.',
            'Write {"input": "...", "method": "...", "k": 2, "allow": ["..."]}; all but the input may be left out.',
        )
    text = fields.pop("input")
    try:
        choice = _CHOICE.validate_json(strict_json.dumps({**_given(default), **fields}))
    except ValidationError as error:
        place, reason = first_invalid(error)
        raise Refused(Code.REQUEST_INVALID, f"{where}: {place}: {reason}.", "Correct the line.") from error
    except Refused as error:
        raise Refused(error.code, f"{where}: {error.message}", error.hint) from error
    return Request(text, choice)


def _given(choice: RoutingChoice) -> dict[str, object]:
    return {name: value for name, value in vars(choice).items() if value is not None}


def _out_of_range(name: str, found: float, expected: str) -> Refused:
    return Refused(Code.REQUEST_INVALID, f"{name} is {found}; expected {expected}.", "Correct the request.")


_CHOICE = TypeAdapter(RoutingChoice)
