"""Requests as they come from outside: flags, JSON Lines, the wire."""

import json
import math
from types import SimpleNamespace

import pytest

from protocol.errors import Code, Refused
from protocol.v1 import query_pb2
from router.query import ask, choice_from_wire, choice_to_wire
from router.request import DEFAULT, Request, RoutingChoice, read_requests

FULL = RoutingChoice("merged", 3, 0.5, ("a", "bob/"), ("carol/x",), 7)


@pytest.mark.parametrize(
    "wrong",
    [{"k": 0}, {"k": 65}, {"k": -1}, {"temperature": 0.0}, {"temperature": -1.0}, {"temperature": math.nan},
     {"temperature": math.inf}, {"release": 0}],
)  # fmt: skip
def test_figures_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(Refused) as refused:
        RoutingChoice(**wrong)  # type: ignore[arg-type]
    assert refused.value.code is Code.REQUEST_INVALID
    assert next(iter(wrong)) in refused.value.message


def test_lines_carry_their_own_choice_and_take_the_rest_from_flags() -> None:
    lines = ['{"input": "x"}', "", '{"input": "y\\u2028z", "method": "base", "k": 1, "allow": [], "deny": ["e"]}']
    found = read_requests(lines, RoutingChoice(k=4, temperature=2.0))
    assert found == [
        Request("x", RoutingChoice(k=4, temperature=2.0)),
        Request("y\u2028z", RoutingChoice("base", 1, 2.0, (), ("e",))),
    ]


@pytest.mark.parametrize(
    "line",
    ["x", "[]", "{}", '{"input": 3}', '{"input": "x", "methud": "base"}', '{"input": "x", "k": "2"}',
     '{"input": "x", "k": 2.5}', '{"input": "x", "k": true}', '{"input": "x", "k": 0}', '{"input": "x", "allow": "e"}',
     '{"input": "x", "temperature": NaN}', '{"input": "x", "temperature": 1e999}', '{"input": "x", "input": "y"}'],
)  # fmt: skip
def test_a_line_that_is_no_request_is_named(line: str) -> None:
    with pytest.raises(Refused, match="Line 2 of the requests") as refused:
        read_requests(['{"input": "fine"}', line])
    assert refused.value.code is Code.REQUEST_INVALID


@pytest.mark.parametrize("choice", [DEFAULT, FULL, RoutingChoice(allow=()), RoutingChoice(deny=("e",), k=64)])
def test_a_choice_crosses_the_wire(choice: RoutingChoice) -> None:
    assert choice_from_wire(choice_to_wire(choice)) == choice
    written = {name: value for name, value in vars(choice).items() if value is not None}
    assert read_requests([json.dumps({"input": "x", **written})])[0].choice == choice


@pytest.mark.parametrize(("explain", "messages"), [(False, [["x", "y", "z"]]), (True, [["x"], ["y"], ["z"]])])
def test_an_explanation_has_a_message_of_its_own(
    monkeypatch: pytest.MonkeyPatch, *, explain: bool, messages: list[list[str]]
) -> None:
    asked: list[query_pb2.AskRequest] = []

    def answer(request: query_pb2.AskRequest, timeout: float) -> query_pb2.AskReply:
        asked.append(request)
        answers = [
            query_pb2.Answer(text=f"{text} by {choice.method}")
            for text, choice in zip(request.inputs, request.choices, strict=True)
        ]
        return query_pb2.AskReply(experts=["a/e"], answers=answers)

    monkeypatch.setattr("router.query.QueryStub", lambda _: SimpleNamespace(Ask=answer))
    choices = [RoutingChoice("base"), RoutingChoice("merged"), RoutingChoice("uniform")]
    found = ask("127.0.0.1:1", ["x", "y", "z"], choices, explain=explain)
    assert [list(request.inputs) for request in asked] == messages
    assert [answer.text for answer in found.answers] == ["x by base", "y by merged", "z by uniform"]
    assert found.experts == ("a/e",)


def test_the_wire_is_checked_like_anything_else() -> None:
    message = choice_to_wire(DEFAULT)
    message.temperature = -1
    with pytest.raises(Refused) as refused:
        choice_from_wire(message)
    assert refused.value.code is Code.REQUEST_INVALID
