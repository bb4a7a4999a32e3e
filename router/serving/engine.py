"""One request in, its tokens out as they are written: what every door asks, whatever the base's architecture."""

import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from protocol.errors import Code, Refused
from router.base.batching import Prompt
from router.model.routed_model import RoutedModel
from router.query.answer import Answered
from router.query.limits import DEFAULT_NEW_TOKENS, MAX_NEW_TOKENS
from router.query.request import DEFAULT, RoutingChoice

MAX_TEMPERATURE = 2.0
MAX_STOPS = 4
"""Texts to stop at, at most."""
MAX_STOP = 200
"""Longest of them, in letters."""
MAX_TOP_LOGPROBS = 20
_SEEDS = 1 << 63


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are drawn.

    Raises:
        Refused: `REQUEST_INVALID` for a figure out of range.
    """

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    temperature: float = 0.0
    """Divides the scores before a token is drawn; 0 takes the likeliest each time."""
    top_p: float = 1.0
    """Draws among the likeliest tokens that together have this probability."""
    seed: int | None = None
    """Of this request alone: the same seed gives the same answer, whoever else is being answered."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends; empty ones stop nothing."""
    top_logprobs: int | None = None
    """None: no log-probabilities; 0: that of each token written; n: those of the n likeliest, too."""

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS)
        _check("temperature", self.temperature, 0, MAX_TEMPERATURE)
        _check("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise _out_of_range("top_p", 0, "a number above 0, up to 1")
        if self.seed is not None:
            _check("seed", self.seed, -_SEEDS, _SEEDS - 1)
        if self.top_logprobs is not None:
            _check("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        object.__setattr__(self, "stop", tuple(text for text in self.stop if text))
        _check("the number of texts to stop at", len(self.stop), 0, MAX_STOPS)
        _check("the length of a text to stop at", max(map(len, self.stop), default=0), 0, MAX_STOP)


@dataclass(frozen=True)
class Asked:
    """One request."""

    prompt: Prompt
    """As `RoutedModel.read` makes it."""
    choice: RoutingChoice = DEFAULT
    sampling: Sampling = field(default_factory=Sampling)
    explain: bool = False
    """Whether the answer carries its tokens and routes."""


class Written(NamedTuple):
    """One token, as soon as it is there."""

    token: int
    text: str
    """What it adds to the answer's text; empty while a character is not whole, or might begin a text to stop at."""
    logprob: float | None
    """Natural logarithm of the probability that the model gave it, before temperature and top-p."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens with their log-probabilities, likeliest first."""


class Ended(NamedTuple):
    """The last thing that is told of a request."""

    reason: str
    """`stop` where the answer came to its end or to a text to stop at, `length` where it might have gone on."""
    text: str
    """What is left to add to the answer's text; as a rule nothing."""
    answered: Answered
    """Of one answer, whole; its text is all texts told before, and this one, put together."""
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Load:
    """How busy an engine is."""

    waiting: int
    running: int
    most_waiting: int
    """Who comes when so many wait is told that the engine is busy."""
    trouble: str = ""
    """Why nothing is answered any more, in a sentence; empty where it is."""


class Engine(Protocol):
    """Answers many requests at once; the only one that runs the model, in a thread of its own."""

    @property
    def model(self) -> RoutedModel:
        """The routed model; someone else keeps it at the newest release."""

    @property
    def load(self) -> Load:
        """How busy it is."""

    def ask(self, asked: Asked) -> AsyncGenerator[Written | Ended, None]:
        """Answer a request token by token; to close the iterator takes the request out of the batch.

        Raises:
            Refused: As `router.model.planner.plan`, or `DATA_TOO_LONG`.
            Unavailable: `BUSY` where too many wait, or where the engine stops; `INTERNAL` where it failed;
                `MEMORY_FULL`.
        """

    def start(self) -> None:
        """Begin to answer, once (`ValueError`); `MEMORY_FULL` where there is too little memory to."""

    def stop(self, drain_s: float = 0.0) -> None:
        """Take nothing new, wait so many seconds for what runs, and end the rest (`BUSY`)."""


def _check(name: str, found: float, least: float, most: float) -> None:
    if not (math.isfinite(found) and least <= found <= most):
        raise _out_of_range(name, found, f"{least:g} to {most:g}")


def _out_of_range(name: str, found: float, expected: str) -> Refused:
    return Refused(Code.REQUEST_INVALID, f"{name} is {found}; expected {expected}.", "Correct the request.")
