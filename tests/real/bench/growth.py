"""Whether those who came first lose anything as a pool grows: their own questions, asked of ever larger pools.

Pools are nested, in the order of `tests.real.bench.contributors`; the largest is all experts, with those of tasks that
others have, too, and those whose targets went astray. To see pools of more than there are tasks, every contributor is
split into several who have a part of the rows each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from router.query.request import RoutingChoice
from tests.real.bench import table
from tests.real.bench.contributors import POOLS, Contributor
from tests.real.bench.questions import Question
from tests.real.bench.score import Asked, Scored
from tests.real.bench.table import Interval

METHODS = ("phatgoose", "nnls-request", "nnls-cautious")
PARTS = 3
"""Into which a contributor is split."""
_FAMILIES = ("held_in", "paraphrase")


def rows(known: Sequence[Contributor], questions: Sequence[Question]) -> list[Asked]:
    """List who is asked: each method among the first of the contributors, as many as a pool has."""
    names = tuple(question.name for question in first_questions(known, questions))
    return [
        Asked(_name(method, size), RoutingChoice(method, allow=tuple(each.name for each in known[:size])), only=names)
        for method in METHODS
        for size in POOLS
        if size <= len(known)
    ]


def split(known: Sequence[Contributor]) -> list[Contributor]:
    """Split every contributor into several of the same task, who have `1 / PARTS` of the rows each."""
    return [
        replace(each, name=f"{each.name}.{part + 1}-of-{PARTS}", turn=part) for each in known for part in range(PARTS)
    ]


def split_rows(known: Sequence[Contributor], questions: Sequence[Question]) -> list[Asked]:
    """List who is asked of a pool of split contributors."""
    names = tuple(question.name for question in first_questions(known, questions))
    return [Asked(_name(method, _split_size(known)), RoutingChoice(method), only=names) for method in METHODS]


def first_questions(known: Sequence[Contributor], questions: Sequence[Question]) -> list[Question]:
    """List the questions that are those of the smallest pool's contributors alone."""
    tasks = {each.task for each in known[: POOLS[0]]}
    return [each for each in questions if each.family in _FAMILIES and set(each.own) <= tasks]


def growth(
    known: Sequence[Contributor], questions: Sequence[Question], found: Mapping[str, Scored]
) -> dict[str, dict[str, Interval]]:
    """Average points by method and by size of the pool, `all` for everybody's."""
    asked = first_questions(known, questions)
    base = found["base"].found
    told: dict[str, dict[str, Interval]] = {}
    for method in METHODS:
        named = {str(size): _name(method, size) for size in POOLS} | {"all": method}
        named[_split_size(known)] = _name(method, _split_size(known))
        told[method] = {
            size: table.interval([table.in_points(q, found[name].found[q.name], base[q.name]) for q in asked])
            for size, name in named.items()
            if asked and name in found and all(q.name in found[name].found for q in asked)
        }
    return {method: row for method, row in told.items() if row}


def _split_size(known: Sequence[Contributor]) -> str:
    return f"{PARTS * len(known)} parts"


def _name(method: str, size: int | str) -> str:
    return f"{method} of {size}"
