"""Inputs by task: read strictly, put together by title."""

import numpy as np
import pytest

from protocol.errors import Code, Refused
from router.query.answer import Answer, Answered, ModuleRoute
from router.query.attribution import panels_by_task, position
from router.query.request import TaskInput, read_tasks

EXPERTS = ("ada/reverse", "bob/copy", "cy/copy")


def answered(*experts: int) -> Answered:
    def route(expert: int) -> ModuleRoute:
        return ModuleRoute("q", True, np.array([[expert]]), np.ones((1, 1), dtype=np.float32))

    return Answered(EXPERTS, tuple(Answer("y", routes=(route(expert),)) for expert in experts))


def test_lines_are_read() -> None:
    lines = ['{"task": "t", "input": "a"}', "", '{"task": "u", "input": "b", "oracle": "x", "score": 0.5}']
    assert read_tasks(lines) == [TaskInput("t", "a"), TaskInput("u", "b", "x", 0.5)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"task": "t"}', "Line 1 of the tasks is no object"),
        ('{"task": "t", "input": "a", "target": "b"}', "target"),
        ('{"task": "t", "input": 3}', "input"),
        ("[]", "Line 1"),
        ("{", "Line 1"),
        ("", "no input"),
    ],
)
def test_bad_lines_are_refused(line: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        read_tasks([line])
    assert refused.value.code is Code.REQUEST_INVALID
    assert said in refused.value.message


def test_answers_of_a_task_stand_together() -> None:
    tasks = [TaskInput("t", "a", "reverse", 1.0), TaskInput("u", "b"), TaskInput("t", "c", score=0.5)]
    first, second = panels_by_task(tasks, answered(0, 1, 2))
    assert (first.title, first.oracle, first.score, len(first.routes)) == ("t", 0, 0.75, 2)
    assert [int(route.experts[0, 0]) for route in first.routes] == [0, 2]
    assert (second.title, second.oracle, second.score, len(second.routes)) == ("u", None, None, 1)


def test_a_task_has_one_oracle() -> None:
    with pytest.raises(Refused) as refused:
        panels_by_task([TaskInput("t", "a", "reverse"), TaskInput("t", "b", "bob/copy")], answered(0, 1))
    assert refused.value.code is Code.REQUEST_INVALID


@pytest.mark.parametrize(("name", "at"), [("reverse", 0), ("ada/reverse", 0), ("cy/copy", 2)])
def test_experts_are_found_by_name(name: str, at: int) -> None:
    assert position(name, EXPERTS) == at


@pytest.mark.parametrize("name", ["copy", "nobody", ""])
def test_a_name_must_mean_one_expert(name: str) -> None:
    with pytest.raises(Refused) as refused:
        position(name, EXPERTS)
    assert refused.value.code is Code.EXPERT_UNKNOWN
