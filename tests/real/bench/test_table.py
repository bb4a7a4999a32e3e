"""Points, intervals and what is ahead of what, against figures worked out by hand."""

import math

import pytest

from tests.real.bench import table
from tests.real.bench.questions import Question
from tests.real.bench.score import Found, Scored
from tests.real.tasks.task import Row

ROWS = (Row("a", ("b",)), Row("c", ("d",)))


def _question(name: str, family: str, half: str = "tuning", metric: str = "exact") -> Question:
    return Question(name, family, half, metric, ROWS)  # type: ignore[arg-type] # one of each


QUESTIONS = (
    _question("one", "bbh"),
    _question("two", "bbh"),
    _question("text", "cell", metric="bits"),
    _question("later", "bbl", "confirming"),
    _question("mine", "held_in", "held-in"),
)


def _scored(name: str, **values: list[float]) -> Scored:
    return Scored(name, {key: Found(each, each) for key, each in values.items()})


BASE = _scored("base", one=[0, 0], two=[1, 0], text=[2.0, 4.0], later=[0, 0], mine=[0, 0])
GOOD = _scored("good", one=[1, 1], two=[1, 0], text=[1.0, 2.0], later=[1, 1], mine=[1, 0])
ADA = _scored("expert:ada", one=[1, 0], two=[0, 0], text=[2.0, 4.0], later=[0, 0], mine=[1, 1])
BOB = _scored("expert:bob", one=[0, 0], two=[1, 1], text=[3.0, 6.0], later=[0, 0], mine=[0, 0])


def test_points_are_percent_right_and_percent_of_bits_saved() -> None:
    made = table.tabulate([BASE, GOOD], QUESTIONS, "tuning")
    assert made.points["good"] == {"one": 100, "two": 50, "text": 50, "mine": 50}
    assert made.points["base"] == {"one": 0, "two": 50, "text": 0, "mine": 0}


def test_a_half_shows_nothing_of_the_other() -> None:
    made = table.tabulate([BASE, GOOD], QUESTIONS, "confirming")
    assert set(made.points["good"]) == {"later", "mine"}
    assert made.of("all") == ["later"]


def test_oracle_takes_the_best_at_each_and_best_individual_the_best_at_what_is_held_out() -> None:
    made = table.tabulate([BASE, ADA, BOB], QUESTIONS, "tuning")
    assert made.points["oracle"] == {"one": 50, "two": 100, "text": 0, "mine": 100}
    # Bob: 0 + 100 - 50 is as much as Ada's 50 + 0 + 0; the first of equals.
    assert made.points["best-individual"]["one"] == 50
    assert not any(name.startswith("expert:") for name in made.points)


def test_a_row_that_lacks_a_question_is_left_out() -> None:
    half = _scored("half", one=[1, 1])
    assert "half" not in table.tabulate([BASE, half], QUESTIONS, "tuning").points


def test_families_are_averaged_over_questions() -> None:
    found = table.summary(table.tabulate([BASE, GOOD], QUESTIONS, "tuning"))
    assert found["good"]["bbh"][0] == 75
    assert found["good"]["all"][0] == pytest.approx(66.67)
    assert list(found) == ["good", "base"]


def test_an_interval_is_where_redrawn_means_lie() -> None:
    values = [float(at % 2) for at in range(400)]
    mean, low, high = table.interval(values)
    # The normal distribution's, of a fair coin thrown 400 times.
    assert mean == 0.5
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(400), abs=0.01)
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / math.sqrt(400), abs=0.01)


def test_what_is_ahead_is_held_question_by_question() -> None:
    made = table.tabulate([BASE, GOOD], QUESTIONS, "tuning")
    assert table.ahead(made, "good", "base")["bbh"] == (50, 0, 100)
    # `_scored` has nats as large as values, of which less is better.
    assert table.ahead(made, "good", "base", "nats")["bbh"] == (-0.5, -1, 0)


def test_nats_are_averaged_over_rows_and_the_least_is_best() -> None:
    made = table.tabulate([BASE, GOOD, ADA, BOB], QUESTIONS, "tuning")
    assert made.nats["good"] == {"one": 1, "two": 0.5, "text": 1.5, "mine": 0.5}
    assert made.nats["oracle"] == {"one": 0, "two": 0, "text": 3, "mine": 0}
    assert made.nats["best-individual"]["text"] == 3
    assert next(iter(table.summary(made, "nats"))) == "good"
    assert "| base | 1.17 (0.00 to 3.00) |" in table.markdown(table.summary(made, "nats"), "nats")


def test_who_hurts_is_named_only_where_the_rows_agree() -> None:
    worse = _scored("worse", one=[0, 0], two=[0, 0], text=[5.0, 8.0], later=[0, 0], mine=[0, 0])
    made = table.tabulate([BASE, worse], QUESTIONS, "tuning")
    by_name = {row.name: row for row in (BASE, worse)}
    # At "two" one row of two is lost, which redrawing may miss.
    assert table.hurt(made, by_name, "worse") == ["text"]
