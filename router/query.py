"""Questions and answers over gRPC: the Query service's two sides share this translation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protocol.channel import STREAM_DEADLINE_S, connect
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryStub
from router.answer import Answer, Answered, ModuleRoute


def ask(
    address: str,
    inputs: Sequence[str],
    *,
    method: str = "",
    max_new_tokens: int = 64,
    explain: bool = False,
    ca: Path | None = None,
) -> Answered:
    """Ask a router that runs elsewhere.

    Raises:
        Refused: `METHOD_UNKNOWN`, `EXPERT_UNKNOWN`, `REQUEST_INVALID`, `UNTRUSTED`.
        Unavailable: `UNREACHABLE`, `BUSY`.
    """
    request = query_pb2.AskRequest(inputs=inputs, method=method, max_new_tokens=max_new_tokens, explain=explain)
    with connect(address, ca) as channel:
        return from_wire(QueryStub(channel).Ask(request, timeout=STREAM_DEADLINE_S))


def to_wire(answered: Answered) -> query_pb2.AskReply:
    """Write answers as a reply."""
    return query_pb2.AskReply(
        release=answered.release,
        method=answered.method,
        experts=answered.experts,
        answers=[
            query_pb2.Answer(
                text=answer.text,
                input_tokens=answer.input_tokens,
                output_tokens=answer.output_tokens,
                routes=[_route_to_wire(route) for route in answer.routes],
            )
            for answer in answered.answers
        ],
    )


def from_wire(reply: query_pb2.AskReply) -> Answered:
    """Inverse of `to_wire`."""
    answers = tuple(
        Answer(
            answer.text,
            tuple(answer.input_tokens),
            tuple(answer.output_tokens),
            tuple(_route_from_wire(route) for route in answer.routes),
        )
        for answer in reply.answers
    )
    return Answered(reply.release, reply.method, tuple(reply.experts), answers)


def _route_to_wire(route: ModuleRoute) -> query_pb2.ModuleRoute:
    return query_pb2.ModuleRoute(
        module=route.module,
        reads_input=route.reads_input,
        k=route.experts.shape[1],
        experts=route.experts.ravel().tolist(),
        weights=route.weights.ravel().tolist(),
    )


def _route_from_wire(route: query_pb2.ModuleRoute) -> ModuleRoute:
    return ModuleRoute(
        route.module,
        route.reads_input,
        np.array(route.experts, dtype=np.int64).reshape(-1, route.k),
        np.array(route.weights, dtype=np.float32).reshape(-1, route.k),
    )
