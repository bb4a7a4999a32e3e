"""How good are the answers of the running system? Exact match on requests that nobody trained on."""

from collections.abc import Mapping, Sequence
from statistics import mean

from deploy.demo import world
from deploy.demo.world import Example
from router.query.client import ask
from router.query.request import RoutingChoice

HELD_OUT_SEED = 2
PER_CONTRIBUTOR = 64
PER_PAIR = 32
MAX_NEW_TOKENS = 8

Accuracy = Mapping[str, float]
"""Exact match of base, own_expert, merged and routed, each from 0 to 1."""


def held_out(router: str) -> dict[str, Accuracy]:
    """Measure on each contributor's held-out requests."""
    return {
        name: _accuracy(router, world.held_out(name, PER_CONTRIBUTOR, HELD_OUT_SEED), (name,))
        for name in world.CONTRIBUTORS
    }


def composed(router: str) -> dict[str, Accuracy]:
    """Measure on requests that need two contributors' skills; "own" is the better of their two experts."""
    return {
        " + ".join(pair): _accuracy(router, world.composed(pair, PER_PAIR, HELD_OUT_SEED), pair)
        for pair in world.composable()
    }


def average(rows: Mapping[str, Accuracy]) -> Accuracy:
    """Mean over groups, to three places."""
    methods = next(iter(rows.values()))
    return {method: round(mean(row[method] for row in rows.values()), 3) for method in methods}


def composed_question(router: str) -> tuple[tuple[str, str], Example]:
    """Find a pair of contributors and a request that needs both: the first that is answered exactly, if any is."""
    pairs = [(pair, world.composed(pair, PER_PAIR, HELD_OUT_SEED)) for pair in world.composable()]
    for pair, examples in pairs:
        for example, right in zip(examples, _exact(router, "phatgoose", examples), strict=True):
            if right:
                return pair, example
    return pairs[0][0], pairs[0][1][0]


def _accuracy(router: str, examples: Sequence[Example], owners: Sequence[str]) -> Accuracy:
    def exact(method: str) -> float:
        return mean(_exact(router, method, examples))

    own = max(exact(f"expert:{owner}/{owner}") for owner in owners)
    return {"base": exact("base"), "own_expert": own, "merged": exact("merged"), "routed": exact("phatgoose")}


def _exact(router: str, method: str, examples: Sequence[Example]) -> list[bool]:
    answered = ask(router, [one.input for one in examples], RoutingChoice(method), max_new_tokens=MAX_NEW_TOKENS)
    return [answer.text == one.target for answer, one in zip(answered.answers, examples, strict=True)]
