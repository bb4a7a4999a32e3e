"""How good are the answers of the running system? Exact match on requests that nobody trained on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from deploy.demo.world import Example, World
from router.query.client import ask
from router.query.request import RoutingChoice

HELD_OUT_SEED = 2
PER_CONTRIBUTOR = 64
PER_PAIR = 32
MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Row:
    """Exact match of every method on one group of requests."""

    title: str
    accuracy: dict[str, float]
    """base, own_expert, merged and routed, each from 0 to 1."""


def held_out(router: str, world: World, contributors: Iterable[str]) -> list[Row]:
    """Measure on each contributor's held-out requests."""
    return [_row(router, name, world.held_out(name, PER_CONTRIBUTOR, HELD_OUT_SEED), [name]) for name in contributors]


def composed(router: str, world: World) -> list[Row]:
    """Measure on requests that need two contributors' skills; "own" is the better of their two experts."""
    return [
        _row(router, " + ".join(pair), world.composed(pair, PER_PAIR, HELD_OUT_SEED), list(pair))
        for pair in world.composable()
    ]


def first_exact(router: str, world: World) -> tuple[tuple[str, str], Example] | None:
    """Find a request that needs two contributors' skills and is answered exactly.

    Returns:
        The pair of contributors and the request, or None if the routed model gets none right.
    """
    for pair in world.composable():
        examples = world.composed(pair, PER_PAIR, HELD_OUT_SEED)
        for example, right in zip(examples, _exact(router, "phatgoose", examples), strict=True):
            if right:
                return pair, example
    return None


def average(rows: Sequence[Row]) -> dict[str, float]:
    """Mean over groups, to three places."""
    return {name: round(mean(row.accuracy[name] for row in rows), 3) for name in rows[0].accuracy}


def _row(router: str, title: str, examples: Sequence[Example], owners: Sequence[str]) -> Row:
    def exact(method: str) -> float:
        return mean(_exact(router, method, examples))

    own = max(exact(f"expert:{owner}/{owner}") for owner in owners)
    return Row(
        title, {"base": exact("base"), "own_expert": own, "merged": exact("merged"), "routed": exact("phatgoose")}
    )


def _exact(router: str, method: str, examples: Sequence[Example]) -> list[bool]:
    answered = ask(router, [one.input for one in examples], RoutingChoice(method), max_new_tokens=MAX_NEW_TOKENS)
    return [answer.text == one.target for answer, one in zip(answered.answers, examples, strict=True)]
