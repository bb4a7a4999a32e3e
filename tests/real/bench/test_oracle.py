"""Whom the oracle is chosen among."""

from tests.real.bench.contributors import Contributor
from tests.real.bench.oracle import FINALISTS, FIRST_ROWS, finals, first_rows
from tests.real.bench.questions import Question
from tests.real.bench.score import Found, Scored
from tests.real.tasks.task import Row

KNOWN = [Contributor(f"e{at}", f"t{at}") for at in range(9)]
ROWS = tuple(Row(f"q{at}", ("a",)) for at in range(7))


def _question(name: str, family: str, own: str = "") -> Question:
    return Question(name, family, "tuning", "exact", ROWS, own={own: 1.0} if own else {})


def _heats(questions: list[Question], loss: dict[tuple[str, str], float]) -> dict[str, Scored]:
    return {
        each.name: Scored(each.name, {
            q.name: Found([0.0], [loss.get((each.name, q.name), 5.0 + at)]) for q in questions
        })
        for at, each in enumerate(KNOWN)
    }  # fmt: skip


def test_the_best_on_the_first_rows_answer_all_and_so_does_whose_task_it_is() -> None:
    questions = [_question("novel", "novel"), _question("t8", "held_in", own="t8")]
    heats = _heats(questions, {("e7", "novel"): 0.5, ("e0", "novel"): 99.0})
    asked = {row.name.removeprefix("expert:"): row.only for row in finals(KNOWN, questions, heats)}
    novel = {name for name, only in asked.items() if "novel" in only}
    assert novel == {"e7", *(f"e{at}" for at in range(1, FINALISTS))}
    assert "t8" in asked["e8"]


def test_the_best_over_what_is_nobodys_own_is_asked_everything() -> None:
    questions = [_question("x", "bbh"), _question("y", "novel"), _question("t0", "held_in", own="t0")]
    heats = _heats(questions, {("e8", "x"): 0.1, ("e8", "y"): 0.1, ("e8", "t0"): 99.0})
    asked = {row.name: row.only for row in finals(KNOWN, questions, heats)}
    assert asked["expert:e8"] == ("x", "y", "t0")


def test_a_heat_has_the_first_rows() -> None:
    (cut,) = first_rows([_question("x", "bbh")])
    assert cut.rows == ROWS[:FIRST_ROWS]
