"""Requests as they come from outside: flags, JSON Lines, the wire."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from protocol.errors import Code, Refused
from protocol.v1 import query_pb2
from protocol.wire.chunks import MAX_MESSAGE_BYTES
from router.query.answer import Answer, Answered, ModuleRoute
from router.query.client import choice_from_wire, choice_to_wire, from_wire, input_from_wire, input_to_wire, to_wire
from router.query.request import DEFAULT, Input, Request, RoutingChoice, Turn, one_by_one, read_requests

FULL = RoutingChoice("merged", 3, 0.5, ("a", "bob/"), ("carol/x",), 7)


@pytest.mark.parametrize(
    "wrong",
    [{"k": 0}, {"k": 65}, {"k": -1}, {"temperature": 0.0}, {"temperature": -1.0}, {"temperature": math.nan},
     {"temperature": math.inf}, {"release": 0}, {"method": "nnls-fixed:1." + "0" * 2_000_000}],
)  # fmt: skip
def test_figures_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(Refused) as refused:
        RoutingChoice(**wrong)  # type: ignore[arg-type]
    assert refused.value.code is Code.REQUEST_INVALID
    assert next(iter(wrong)) in refused.value.message
    assert len(refused.value.message) < 200


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


def test_asking_a_router_that_runs_wakes_no_model() -> None:
    program = "import sys, router.query.client, router.query.terminal; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    heavy = {"torch", "transformers", "peft", "datasets", "matplotlib", "scipy", "pandas", "structlog"}
    assert heavy & set(done.stdout.split()) == set()


CHAT: list[Turn] = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "say a"}]


def test_a_chat_stands_where_a_text_may() -> None:
    line = json.dumps({"messages": CHAT, "k": 1})
    assert read_requests([line]) == [Request(CHAT, RoutingChoice(k=1))]
    assert [input_from_wire(input_to_wire(each)) for each in (CHAT, "a", "")] == [CHAT, "a", ""]
    assert one_by_one("a") == ["a"]
    assert one_by_one(CHAT) == [CHAT]
    assert one_by_one(both := list[Input]([CHAT, "a"])) == both


@pytest.mark.parametrize(
    "asked",
    [{"messages": "x"}, {"messages": [{"role": "user"}]}, {"messages": [{"role": "user", "content": 3}]},
     {"messages": CHAT, "input": "x"}, {"messages": [{**CHAT[0], "name": "ada"}]}],
)  # fmt: skip
def test_a_line_that_is_no_chat_is_named(asked: object) -> None:
    with pytest.raises(Refused, match="Line 1 of the requests") as refused:
        read_requests([json.dumps(asked)])
    assert refused.value.code is Code.REQUEST_INVALID


def test_an_explanation_may_be_larger_than_a_message() -> None:
    tokens, rng = 300_000, np.random.default_rng(0)
    experts = rng.integers(0, 2, (tokens, 2))
    routes = [
        ModuleRoute("block.0.q", True, experts, rng.random((tokens, 2), dtype=np.float32)),
        ModuleRoute("block.0.k", False, experts[:0, :1], np.zeros((0, 1), dtype=np.float32)),
        ModuleRoute("block.0.v", False, experts[:7, :1], np.ones((7, 1), dtype=np.float32)),
    ]
    said = [Answer("yes", 3, "phatgoose", ("a", "b"), ("c",), tuple(routes)), Answer("no", 2, "base")]
    parts = list(to_wire(Answered(("ada/e", "bob/e"), tuple(said))))
    assert max(part.ByteSize() for part in parts) < MAX_MESSAGE_BYTES
    found = from_wire(parts)
    assert found.experts == ("ada/e", "bob/e")
    for answer, expected in zip(found.answers, said, strict=True):
        assert vars(answer) | {"routes": ()} == vars(expected) | {"routes": ()}
        for route, whole in zip(answer.routes, expected.routes, strict=True):
            assert (route.module, route.reads_input) == (whole.module, whole.reads_input)
            np.testing.assert_array_equal(route.experts, whole.experts)
            np.testing.assert_array_equal(route.weights, whole.weights)


def route(module: str, k: int, *experts: int) -> query_pb2.AskPart:
    return query_pb2.AskPart(
        route=query_pb2.ModuleRoute(module=module, k=k, experts=experts, weights=[1.0] * len(experts))
    )


NAMES = query_pb2.AskPart(experts=query_pb2.Experts(names=["ada/e"]))
ANSWER = query_pb2.AskPart(answer=query_pb2.Answer(text="x"))


@pytest.mark.parametrize(
    "parts",
    [[NAMES, route("q", 1, 0)], [ANSWER, route("q", 1, 0)], [NAMES, ANSWER, route("q", 0, 0)], [query_pb2.AskPart()],
     [NAMES, ANSWER, route("q", 2, 0)], [NAMES, ANSWER, route("q", 1, 0), route("q", 2, 0, 0)]],
)  # fmt: skip
def test_parts_that_do_not_fit_together_are_refused(parts: list[query_pb2.AskPart]) -> None:
    with pytest.raises(Refused) as refused:
        from_wire(parts)
    assert refused.value.code is Code.BAD_WIRE


def test_the_wire_is_checked_like_anything_else() -> None:
    message = choice_to_wire(DEFAULT)
    message.temperature = -1
    with pytest.raises(Refused) as refused:
        choice_from_wire(message)
    assert refused.value.code is Code.REQUEST_INVALID
