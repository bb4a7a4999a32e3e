"""How good are the answers of the running system? Exact match on requests that nobody trained on."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from deploy.demo.federation import Federation
from deploy.demo.story import Question, Story
from router.query.client import ask
from router.query.request import DEFAULT, RoutingChoice

Accuracy = Mapping[str, float]
"""Exact match of base, own_expert, merged and routed, each from 0 to 1."""


def held_out(cast: Federation, story: Story) -> dict[str, Accuracy]:
    """Measure on each contributor's held-out requests."""
    return {name: _accuracy(cast, story, one.held_out, (name,)) for name, one in story.contributors.items()}


def composed(cast: Federation, story: Story) -> dict[str, Accuracy]:
    """Measure on requests that need two contributors' skills; "own" is the better of their two experts."""
    return {" + ".join(pair): _accuracy(cast, story, asked, pair) for pair, asked in story.pairs.items()}


def average(rows: Mapping[str, Accuracy]) -> Accuracy:
    """Mean over groups, to three places."""
    methods = next(iter(rows.values()))
    return {method: round(mean(row[method] for row in rows.values()), 3) for method in methods}


def shortfalls(own: Mapping[str, Accuracy], both: Mapping[str, Accuracy]) -> Iterator[str]:
    """Say in sentences where the figures are not what one would hope for."""
    for name, row in own.items():
        if row["own_expert"] <= row["base"]:
            yield f"The expert of {name} is no better than the base on its own requests."
        if row["routed"] <= row["base"]:
            yield f"Routed, the requests of {name} are answered no better than by the base."
    for pair, row in both.items():
        if row["routed"] <= max(row["base"], row["own_expert"]):
            yield f"Routed, what needs {pair} is answered no better than without routing."


def composed_question(cast: Federation, story: Story) -> tuple[tuple[str, str], Question, int, int]:
    """Find a request that needs two contributors: the first that is answered exactly, if any is.

    Returns:
        The pair, the request, and how many of how many of the pair's requests are answered exactly.
    """
    found = [(pair, asked, _exact(cast, story, DEFAULT, asked)) for pair, asked in story.pairs.items()]
    pair, asked, right = next((each for each in found if any(each[2])), found[0])
    return pair, asked[right.index(True) if any(right) else 0], sum(right), len(right)


def _accuracy(cast: Federation, story: Story, asked: Sequence[Question], owners: Sequence[str]) -> Accuracy:
    cast.say("router", f"is asked {len(asked)} requests that need {' and '.join(owners)}, by every method")

    def exact(method: str | None) -> float:
        return mean(_exact(cast, story, RoutingChoice(method), asked))

    own = max(exact(f"expert:{owner}/{owner}") for owner in owners)
    return {"base": exact("base"), "own_expert": own, "merged": exact("merged"), "routed": exact(None)}


def _exact(cast: Federation, story: Story, choice: RoutingChoice, asked: Sequence[Question]) -> list[bool]:
    inputs = [one.input for one in asked]
    answered = ask(cast.router, inputs, choice, max_new_tokens=story.max_new_tokens)
    return [one.answered_by(answer.text) for answer, one in zip(answered.answers, asked, strict=True)]
