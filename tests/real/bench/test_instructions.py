"""A question is taken out of the wording it stands in, and shares are told by the instruction's length."""

import pytest

from tests.real.bench.instructions import Instructed, by_length, document
from tests.real.bench.questions import ANSWER
from tests.real.tasks import every
from tests.real.tasks.task import Task


@pytest.mark.parametrize("task", [task for task in every().values() if task.family == "skill"], ids=lambda t: t.name)
def test_any_wording_is_taken_off(task: Task) -> None:
    for wording in task.wordings:
        assert document(task, wording.replace("{}", "a: b?") + ANSWER) == "a: b?"


def test_a_question_of_another_task_fits_none() -> None:
    with pytest.raises(ValueError, match="no wording of past-tense fits"):
        document(every()["past-tense"], "What is the plural of go?" + ANSWER)


def test_instructions_of_a_length_and_kind_are_averaged() -> None:
    found = [
        Instructed("a", "bare", 0.0, 0.2, 0.4),
        Instructed("a", "wording", 6.5, 0.8, 0.1),
        Instructed("b", "wording", 8.0, 0.6, 0.3),
        Instructed("a", "paraphrase", 30.0, 0.5, 0.5),
    ]
    assert by_length(found) == [
        ("bare", "0 to 2", 1, 0.2, 0.4),
        ("wording", "6 to 8", 2, pytest.approx(0.7), pytest.approx(0.2)),
        ("paraphrase", "12+", 1, 0.5, 0.5),
    ]
