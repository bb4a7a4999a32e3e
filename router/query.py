"""Questions and answers over gRPC: the asking side, and the translation that both sides share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protocol.channel import STREAM_DEADLINE_S, connect
from protocol.errors import Code, Refused
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryStub
from router.answer import Answer, Answered, ModuleRoute, joined
from router.limits import DEFAULT_NEW_TOKENS
from router.request import DEFAULT, Choices, RoutingChoice, one_each


def ask(
    address: str,
    inputs: Sequence[str],
    choice: Choices = DEFAULT,
    *,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    explain: bool = False,
    ca: Path | None = None,
) -> Answered:
    """Ask a router that runs elsewhere.

    Args:
        address: The router, `host:port`.
        inputs: Texts.
        choice: How they are routed, or one choice for each; what it leaves open, the release says.
        max_new_tokens: Longest answer, in tokens.
        explain: Whether to ask for the experts that answered, too.
        ca: The router's CA certificate, PEM.

    Raises:
        Refused: `REQUEST_INVALID`, `UNTRUSTED`, `BAD_WIRE`, or as `router.planning.plan`.
        Unavailable: `UNREACHABLE`, `BUSY`.
    """
    choices = one_each(choice, len(inputs))
    # Explanations are large: that of one long input nearly fills a message.
    step = 1 if explain else max(len(inputs), 1)
    replies = []
    with connect(address, ca) as channel:
        for at in range(0, max(len(inputs), 1), step):
            request = query_pb2.AskRequest(
                inputs=inputs[at : at + step],
                choices=[choice_to_wire(each) for each in choices[at : at + step]],
                max_new_tokens=max_new_tokens,
                explain=explain,
            )
            replies.append(from_wire(QueryStub(channel).Ask(request, timeout=STREAM_DEADLINE_S)))
    return joined(replies)


def to_wire(answered: Answered) -> query_pb2.AskReply:
    """Write answers as a reply."""
    return query_pb2.AskReply(
        experts=answered.experts,
        answers=[
            query_pb2.Answer(
                text=answer.text,
                release=answer.release,
                method=answer.method,
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
            answer.release,
            answer.method,
            tuple(answer.input_tokens),
            tuple(answer.output_tokens),
            tuple(_route_from_wire(route, len(reply.experts)) for route in answer.routes),
        )
        for answer in reply.answers
    )
    return Answered(tuple(reply.experts), answers)


def choice_to_wire(choice: RoutingChoice) -> query_pb2.RoutingChoice:
    """Write how an input is routed; what it leaves open stays out."""
    return query_pb2.RoutingChoice(
        method=choice.method,
        k=choice.k,
        temperature=choice.temperature,
        allow=None if choice.allow is None else query_pb2.ExpertNames(names=choice.allow),
        deny=choice.deny,
        release=choice.release,
    )


def choice_from_wire(choice: query_pb2.RoutingChoice) -> RoutingChoice:
    """Inverse of `choice_to_wire`.

    Raises:
        Refused: `REQUEST_INVALID` for a figure out of range.
    """
    return RoutingChoice(
        choice.method if choice.HasField("method") else None,
        choice.k if choice.HasField("k") else None,
        choice.temperature if choice.HasField("temperature") else None,
        tuple(choice.allow.names) if choice.HasField("allow") else None,
        tuple(choice.deny),
        choice.release if choice.HasField("release") else None,
    )


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
