"""Questions and answers over gRPC: the asking side, and the translation that both sides share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protocol.channel import STREAM_DEADLINE_S, connect
from protocol.errors import Code, Refused
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryStub
from router.answer import Answer, Answered, ModuleRoute
from router.limits import DEFAULT_NEW_TOKENS


def ask(
    address: str,
    inputs: Sequence[str],
    *,
    method: str | None = None,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    explain: bool = False,
    ca: Path | None = None,
) -> Answered:
    """Ask a router that runs elsewhere.

    Args:
        address: The router, `host:port`.
        inputs: Texts.
        method: A routing method; without one, the release's.
        max_new_tokens: Longest answer, in tokens.
        explain: Whether to ask for the experts that answered, too.
        ca: The router's CA certificate, PEM.

    Raises:
        Refused: `METHOD_UNKNOWN`, `EXPERT_UNKNOWN`, `REQUEST_INVALID`, `UNTRUSTED`, `BAD_WIRE`.
        Unavailable: `UNREACHABLE`, `BUSY`.
    """
    request = query_pb2.AskRequest(inputs=inputs, method=method or "", max_new_tokens=max_new_tokens, explain=explain)
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
    """Inverse of `to_wire`.

    Raises:
        Refused: `BAD_WIRE` for routes that do not fit together.
    """
    answers = tuple(
        Answer(
            answer.text,
            tuple(answer.input_tokens),
            tuple(answer.output_tokens),
            tuple(_route_from_wire(route, len(reply.experts)) for route in answer.routes),
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


def _route_from_wire(route: query_pb2.ModuleRoute, experts: int) -> ModuleRoute:
    chosen, weights = np.array(route.experts, dtype=np.int64), np.array(route.weights, dtype=np.float32)
    if not route.k or len(chosen) % route.k or len(chosen) != len(weights) or (chosen >= experts).any():
        raise Refused(Code.BAD_WIRE, "The router's explanation does not add up.", "Do both sides run the same version?")
    return ModuleRoute(route.module, route.reads_input, chosen.reshape(-1, route.k), weights.reshape(-1, route.k))
