"""The first contributors' questions are asked of nested pools, and told by size."""

from itertools import pairwise

from tests.real.bench.contributors import contributors
from tests.real.bench.growth import first_questions, growth, rows
from tests.real.bench.questions import Question
from tests.real.bench.score import Found, Scored
from tests.real.tasks.task import Row

KNOWN = contributors("full")


def _question(name: str, family: str, *own: str) -> Question:
    return Question(name, family, "tuning", "exact", (Row("a", ("b",)),), (), dict.fromkeys(own, 1.0))


FIRST, LATER = _question("past-tense", "held_in", "past-tense"), _question("plural", "held_in", "plural")
MIXED = _question("both", "mixture", "past-tense", "opposite")


def test_only_the_first_ones_are_asked_about() -> None:
    assert first_questions(KNOWN, [FIRST, LATER, MIXED, _question("novel", "novel", "past-tense")]) == [FIRST]


def test_pools_are_nested() -> None:
    pools = [row.choice.allow for row in rows(KNOWN, [FIRST]) if row.choice.method == "phatgoose"]
    assert [len(pool or ()) for pool in pools] == [6, 12, 24, 36]
    assert all(set(small or ()) < set(large or ()) for small, large in pairwise(pools))
    assert not [row for row in rows(KNOWN[:8], [FIRST]) if len(row.choice.allow or ()) != 6]


def test_points_are_told_by_size() -> None:
    def scored(name: str, value: float) -> Scored:
        return Scored(name, {FIRST.name: Found([value], [1.0])})

    found = {name: scored(name, value) for name, value in
             (("base", 0.0), ("phatgoose of 6", 1.0), ("phatgoose of 12", 0.0), ("phatgoose", 1.0))}  # fmt: skip
    assert growth(KNOWN, [FIRST], found) == {
        "phatgoose": {"6": (100, 100, 100), "12": (0, 0, 0), "all": (100, 100, 100)}
    }
