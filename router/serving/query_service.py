"""The Query service: a routed model that answers over gRPC."""

import asyncio
import math
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc

from protocol.errors import Code, Refused
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryServicer, add_QueryServicer_to_server
from protocol.wire.grpc_server import to_end
from router.base.batching import count_tokens
from router.model.routed_model import RoutedModel
from router.query.answer import Answered
from router.query.client import choice_from_wire, to_wire
from router.query.limits import DEFAULT_NEW_TOKENS, MAX_INPUTS, MAX_NEW_TOKENS, MAX_SQUARED_TOKENS
from router.query.request import DEFAULT

SERVICE = "greylag.v1.Query"


class QueryService(QueryServicer):
    """Answers one batch at a time.

    Args:
        model: The routed model; someone else keeps it at the newest release.
    """

    def __init__(self, model: RoutedModel) -> None:
        self._model = model
        # One batch fills the device; the others wait in the order in which they came.
        self._turn = asyncio.Lock()

    async def Ask(  # noqa: N802 - the service's name for it
        self,
        request: query_pb2.AskRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002 - gRPC passes it
    ) -> AsyncIterator[query_pb2.AskPart]:
        """Answer a batch of inputs.

        Raises:
            Refused: `REQUEST_INVALID`, or as `router.model.planner.plan`.
        """
        if len(request.inputs) > MAX_INPUTS or request.max_new_tokens > MAX_NEW_TOKENS:
            raise Refused(
                Code.REQUEST_INVALID,
                f"At most {MAX_INPUTS} inputs and {MAX_NEW_TOKENS} new tokens are taken in one request.",
                "Split the request.",
            )
        async with self._turn:
            answered = await to_end(partial(self._answer, request))
        for part in to_wire(answered):
            yield part

    def _answer(self, request: query_pb2.AskRequest) -> Answered:
        inputs, choices = list(request.inputs), [choice_from_wire(choice) for choice in request.choices]
        longest = max(count_tokens(self._model.base, inputs), default=0)
        if len(inputs) * longest**2 > MAX_SQUARED_TOKENS:
            raise Refused(
                Code.REQUEST_INVALID,
                f"{len(inputs)} inputs of up to {longest} tokens are too much for one request.",
                f"Send at most {math.isqrt(MAX_SQUARED_TOKENS // len(inputs))} tokens an input, or fewer inputs.",
            )
        return self._model.answer(
            inputs,
            (choices or [DEFAULT])[0] if len(choices) <= 1 else choices,
            max_new_tokens=request.max_new_tokens or DEFAULT_NEW_TOKENS,
            explain=request.explain,
        )

    async def Info(  # noqa: N802 - the service's name for it
        self,
        request: query_pb2.InfoRequest,  # noqa: ARG002 - gRPC passes it
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002 - as above
    ) -> query_pb2.InfoReply:
        """Tell which release answers at this moment."""
        held = self._model.held
        return query_pb2.InfoReply(
            release=held.newest.release,
            experts=[expert.full_name for expert in held.newest.pool.experts],
            releases=held.releases,
        )

    def register(self, server: grpc.aio.Server) -> tuple[str, ...]:
        """Add the service to a server."""
        add_QueryServicer_to_server(self, server)
        return (SERVICE,)
