"""The first contributors' questions are asked of nested pools, and told by size."""

from itertools import pairwise

from tests.real.bench.contributors import contributors
from tests.real.bench.growth import first_questions, growth, rows, split, split_rows
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


def test_a_contributor_is_split_into_others_who_share_the_rows() -> None:
    parts = split(KNOWN[:2])
    assert [(each.name, each.task, each.turn) for each in parts[:3]] == [
        ("past-tense.1-of-3", "past-tense", 0), ("past-tense.2-of-3", "past-tense", 1),
        ("past-tense.3-of-3", "past-tense", 2),
    ]  # fmt: skip
    assert len({each.name for each in parts}) == 6
    assert {row.name for row in split_rows(KNOWN[:2], [FIRST])} >= {"phatgoose of 6 parts"}


def test_points_are_told_by_size() -> None:
    def scored(name: str, value: float) -> Scored:
        return Scored(name, {FIRST.name: Found([value], [1.0])})

    values = {
        "base": 0.0,
        "phatgoose of 6": 1.0,
        "phatgoose of 12": 0.0,
        "phatgoose": 1.0,
        "phatgoose of 108 parts": 1.0,
    }
    all_right, none_right = (100, 100, 100), (0, 0, 0)
    assert growth(KNOWN, [FIRST], {name: scored(name, value) for name, value in values.items()}) == {
        "phatgoose": {"6": all_right, "12": none_right, "all": all_right, "108 parts": all_right}
    }
