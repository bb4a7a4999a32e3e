"""Rows of tasks: read strictly, refused with their number."""

import json

import pytest

from protocol.errors import Code, Refused
from router.evaluation.rows import EvaluationRow, read_rows

ROW = {"task": "t", "input": "a", "target": "b"}


def test_rows_are_grouped_by_task_in_the_order_of_the_file() -> None:
    lines = [json.dumps(each) for each in (ROW, {"input": "x", "targets": ["y", "z", "y"]}, ROW)]
    first, second = read_rows([lines[0], "", *lines[1:]], name="mine")
    assert (first.name, [row.number for row in first.rows], first.ranked) == ("t", [1, 4], False)
    assert second.rows == (EvaluationRow(number=3, task="mine", input="x", turns=(), targets=("y", "z"), choices=()),)


def test_a_limit_holds_for_each_task() -> None:
    lines = [json.dumps(ROW | {"task": task}) for task in ("t", "u", "t", "t")]
    assert [len(task.rows) for task in read_rows(lines, name="", limit=2)] == [2, 1]


def test_what_an_expert_is_trained_on_is_evaluated_on() -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    more = [*chat, {"role": "user", "content": "s"}]
    lines = [json.dumps({"messages": chat}), json.dumps({"messages": more, "target": "t"})]
    ((first, second),) = (task.rows for task in read_rows(lines, name="chat"))
    assert ([turn["content"] for turn in first.turns], first.targets) == (["q"], ("r",))
    assert ([turn["content"] for turn in second.turns], second.targets) == (["q", "r", "s"], ("t",))


def test_digests_tell_rows_apart() -> None:
    (one,), (other,) = (read_rows([json.dumps(ROW | {"target": target})], name="") for target in "bc")
    assert one.digest != other.digest
    assert one.digest == read_rows([json.dumps(ROW)], name="x")[0].digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": None}, "target"),
        ({"targets": ["b"]}, "one of target, targets"),
        ({"target": None, "targets": []}, "one of target, targets"),
        ({"target": " "}, "empty"),
        ({"choices": ["c", "d"]}, "'b' is none of the 2 choices"),
        ({"choices": ["b"]}, "two at least"),
        ({"choices": ["b", "b"]}, "stands twice"),
        ({"choices": ["b", ""]}, "empty"),
        ({"input": None}, "either an input or messages"),
        ({"input": "\n"}, "input is empty"),
        ({"messages": [{"role": "user", "content": "q"}]}, "either an input or messages"),
        ({"input": None, "messages": [{"role": "assistant", "content": "q"}], "target": None}, "ask nothing"),
        ({"input": None, "messages": [{"role": "user", "content": ""}]}, "message is empty"),
        ({"input": None, "messages": [{"role": "user", "content": "q"}], "target": None}, "one of target"),
        ({"input": None, "messages": [{"role": "user"}]}, "content"),
        ({"task": "\u001b[2J"}, "name"),
        ({"task": ""}, "name"),
        ({"input": 3}, "input"),
        ({"label": 1}, "label"),
    ],
)
def test_a_wrong_row_is_refused_with_its_number(change: dict[str, object], said: str) -> None:
    fields = {name: value for name, value in (ROW | change).items() if value is not None}
    with pytest.raises(Refused) as refused:
        read_rows([json.dumps(ROW), json.dumps(fields)], name="mine")
    assert refused.value.code is Code.TASK_ROW
    assert refused.value.message.startswith("Row 2 of the tasks: ")
    assert said in refused.value.message


@pytest.mark.parametrize("line", ["{", "[]", '{"input": "a", "input": "b"}', '{"input": "\\ud800"}'])
def test_what_is_no_row_is_refused(line: str) -> None:
    with pytest.raises(Refused, match="Row 1 of the tasks") as refused:
        read_rows([line], name="mine")
    assert refused.value.code is Code.TASK_ROW


def test_a_task_is_chosen_in_or_written_not_both() -> None:
    with pytest.raises(Refused, match=r"Row 2 .* with choices and rows without") as refused:
        read_rows([json.dumps(ROW), json.dumps(ROW | {"choices": ["b", "c"]})], name="")
    assert refused.value.code is Code.TASK_ROW


def test_no_rows_are_refused() -> None:
    with pytest.raises(Refused) as refused:
        read_rows(["", " "], name="mine")
    assert refused.value.code is Code.DATA_EMPTY
