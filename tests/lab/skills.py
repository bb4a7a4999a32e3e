"""What a suite can be asked for: orders of a payload, tables over letters, lexicons of made-up words."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

LETTERS: tuple[str, ...] = tuple("abcdefghijklmnop")
PAYLOAD_LENGTHS = (3, 4, 5)
SYNONYMS = 3
"""Words for one skill; experts hear all but the last."""
LEXICON_WORDS = 8
COLLOCATES = 4
"""Fillers that a skill's own requests use."""
LOOK_UP = "translate"
"""The word that asks for any lexicon: which one, its nouns tell."""

Order = Callable[[Sequence[str]], list[str]]


class Kind(StrEnum):
    """The kinds of skills; a request has one order at most, and one table or lexicon."""

    ORDER = "order"
    TABLE = "table"
    LEXICON = "lexicon"


@dataclass(frozen=True)
class Skill:
    """One thing that can be asked for."""

    name: str
    kind: Kind
    synonyms: tuple[str, ...]
    """Words that ask for it."""
    collocates: tuple[str, ...]
    """Fillers around those words in the skill's own requests."""
    words: tuple[str, ...] = ()
    """A lexicon's nouns."""
    known: bool = True
    """Whether the base model was taught the skill; an expert for another one adds knowledge."""


# Some agree on the shortest payload, no two on all.
PLAIN_ORDERS: dict[str, Order] = {
    "reverse": lambda p: list(p[::-1]),
    "rotate-left": lambda p: [*p[1:], p[0]],
    "swap-ends": lambda p: [p[-1], *p[1:-1], p[0]],
    "drop-first": lambda p: list(p[1:]),
    "rotate-right": lambda p: [p[-1], *p[:-1]],
    "drop-last": lambda p: list(p[:-1]),
    "double-last": lambda p: [*p, p[-1]],
    "swap-first": lambda p: [p[1], p[0], *p[2:]],
    "double-first": lambda p: [p[0], *p],
    "swap-last": lambda p: [*p[:-2], p[-1], p[-2]],
    "close": lambda p: [*p, p[0]],
    "open": lambda p: [p[-1], *p],
    "drop-second": lambda p: [p[0], *p[2:]],
    "drop-ends": lambda p: list(p[1:-1]),
    "triple-last": lambda p: [*p, p[-1], p[-1]],
    "double-second": lambda p: [*p[:2], *p[1:]],
}


def all_orders() -> dict[str, Order]:
    """Give the plain orders, then what two of them make in a row, each different from all before it."""
    samples = [LETTERS[:length] for length in PAYLOAD_LENGTHS]
    found: dict[tuple[tuple[str, ...], ...], tuple[str, Order]] = {}
    for name, order in itertools.chain(PLAIN_ORDERS.items(), _pairs()):
        found.setdefault(tuple(tuple(order(sample)) for sample in samples), (name, order))
    return dict(found.values())


def _pairs() -> Iterator[tuple[str, Order]]:
    shortest = LETTERS[: min(PAYLOAD_LENGTHS)]
    for (first, one), (then, other) in itertools.product(PLAIN_ORDERS.items(), repeat=2):
        # An order needs two symbols, and an answer one.
        if len(one(shortest)) > 1 and other(one(shortest)):
            yield f"{first}.{then}", _in_a_row(one, other)


def _in_a_row(one: Order, other: Order) -> Order:
    return lambda payload: other(one(payload))


def draw_words(rng: random.Random, count: int, taken: set[str]) -> list[str]:
    """Draw made-up words that nobody has yet, and take them."""
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3))
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words
