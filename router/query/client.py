"""Questions and answers over gRPC: the asking side, and the translation that both sides share."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from protocol.errors import Code, Refused
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryStub
from protocol.wire.grpc_client import STREAM_DEADLINE_S, connect
from router.query.answer import Answer, Answered, ModuleRoute
from router.query.limits import DEFAULT_NEW_TOKENS
from router.query.request import (
    DEFAULT,
    Choices,
    Input,
    Inputs,
    RoutingChoice,
    Turn,
    check_inputs,
    one_by_one,
    one_each,
)

_ENTRIES = 1 << 17
"""Of a route in one part: at most 5 bytes an expert and 4 a weight, so that a part stays near 1 MiB."""


def ask(
    address: str,
    inputs: Inputs,
    choice: Choices = DEFAULT,
    *,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    explain: bool = False,
    ca: Path | None = None,
) -> Answered:
    """Ask a router that runs elsewhere.

    Args:
        address: The router, `host:port`.
        inputs: A text or a chat, or several.
        choice: How they are routed, or one choice for each; what it leaves open, the release says.
        max_new_tokens: Longest answer, in tokens.
        explain: Whether to ask for the experts that answered, too.
        ca: The router's CA certificate, PEM.

    Raises:
        Refused: `REQUEST_INVALID`, `UNTRUSTED`, `BAD_WIRE`, or as `router.model.planner.plan`.
        Unavailable: `UNREACHABLE`, `BUSY`.
    """
    asked = one_by_one(inputs)
    check_inputs(asked)
    request = query_pb2.AskRequest(
        inputs=map(input_to_wire, asked),
        choices=[choice_to_wire(each) for each in one_each(choice, len(asked))],
        max_new_tokens=max_new_tokens,
        explain=explain,
    )
    with connect(address, ca) as channel:
        return from_wire(QueryStub(channel).Ask(request, timeout=STREAM_DEADLINE_S))


def to_wire(answered: Answered) -> Iterator[query_pb2.AskPart]:
    """Write answers part by part, none of them larger than a message may be."""
    yield query_pb2.AskPart(experts=query_pb2.Experts(names=answered.experts))
    for answer in answered.answers:
        head = query_pb2.Answer(
            text=answer.text,
            release=answer.release,
            method=answer.method,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
        )
        yield query_pb2.AskPart(answer=head)
        for route in answer.routes:
            for piece in _route_to_wire(route):
                yield query_pb2.AskPart(route=piece)


def from_wire(parts: Iterable[query_pb2.AskPart]) -> Answered:
    """Inverse of `to_wire`.

    Raises:
        Refused: `BAD_WIRE` for parts that do not fit together.
    """
    names: tuple[str, ...] = ()
    answers: list[tuple[query_pb2.Answer, list[ModuleRoute]]] = []
    for part in parts:
        kind = part.WhichOneof("part")
        if kind == "experts":
            names = tuple(part.experts.names)
        elif kind == "answer":
            answers.append((part.answer, []))
        elif kind == "route" and answers:
            _go_on(answers[-1][1], _route_from_wire(part.route, len(names)))
        else:
            raise _senseless()
    told = (
        Answer(head.text, head.release, head.method, tuple(head.input_tokens), tuple(head.output_tokens), tuple(routes))
        for head, routes in answers
    )
    return Answered(names, tuple(told))


def _go_on(routes: list[ModuleRoute], piece: ModuleRoute) -> None:
    last = routes[-1] if routes else None
    if last is None or last.module != piece.module:
        routes.append(piece)
    elif last.experts.shape[1] == piece.experts.shape[1]:
        experts = np.concatenate([last.experts, piece.experts])
        routes[-1] = replace(last, experts=experts, weights=np.concatenate([last.weights, piece.weights]))
    else:
        raise _senseless()


def input_to_wire(asked: Input) -> query_pb2.Input:
    """Write a text or a chat."""
    if isinstance(asked, str):
        return query_pb2.Input(text=asked)
    return query_pb2.Input(chat=query_pb2.Chat(turns=[query_pb2.Turn(**turn) for turn in asked]))


def input_from_wire(asked: query_pb2.Input) -> Input:
    """Inverse of `input_to_wire`."""
    if asked.HasField("chat"):
        return [Turn(role=turn.role, content=turn.content) for turn in asked.chat.turns]
    return asked.text


def choice_to_wire(choice: RoutingChoice) -> query_pb2.RoutingChoice:
    """Write how an input is routed; what it leaves open stays out."""
    allow = None if choice.allow is None else query_pb2.ExpertNames(names=choice.allow)
    return query_pb2.RoutingChoice(**vars(choice) | {"allow": allow})


def choice_from_wire(choice: query_pb2.RoutingChoice) -> RoutingChoice:
    """Inverse of `choice_to_wire`.

    Raises:
        Refused: `REQUEST_INVALID` for a figure out of range.
    """
    given: dict[str, Any] = {field.name: value for field, value in choice.ListFields()}
    if "allow" in given:
        given["allow"] = tuple(choice.allow.names)
    return RoutingChoice(**given | {"deny": tuple(choice.deny)})


def _route_to_wire(route: ModuleRoute) -> Iterator[query_pb2.ModuleRoute]:
    k = max(route.experts.shape[1], 1)
    step = max(_ENTRIES // k, 1)
    for start in range(0, max(len(route.experts), 1), step):
        yield query_pb2.ModuleRoute(
            module=route.module,
            reads_input=route.reads_input,
            k=k,
            experts=route.experts[start : start + step].ravel().tolist(),
            weights=route.weights[start : start + step].ravel().tolist(),
        )


def _route_from_wire(route: query_pb2.ModuleRoute, experts: int) -> ModuleRoute:
    chosen, weights = np.array(route.experts, dtype=np.int64), np.array(route.weights, dtype=np.float32)
    if not route.k or len(chosen) % route.k or len(chosen) != len(weights) or (chosen >= experts).any():
        raise _senseless()
    return ModuleRoute(route.module, route.reads_input, chosen.reshape(-1, route.k), weights.reshape(-1, route.k))


def _senseless() -> Refused:
    return Refused(Code.BAD_WIRE, "The router's answer does not add up.", "Do both sides run the same version?")
