"""The Query service: a routed model that answers over gRPC."""
# ruff: noqa: N802, ARG002 - gRPC decides the names, and what is passed

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import cast

import grpc

from protocol.documents import timestamp
from protocol.errors import Code, Refused
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryServicer, add_QueryServicer_to_server
from protocol.wire.grpc_server import to_end
from protocol.wire.peer import Context
from router.base.batching import Prompt
from router.query.answer import Answered, merge_answers
from router.query.client import choice_from_wire, input_from_wire, to_wire
from router.query.limits import DEFAULT_ALLOWANCE, DEFAULT_NEW_TOKENS, MAX_INPUTS, MAX_SQUARED_TOKENS, Allowance
from router.query.request import DEFAULT, one_each
from router.serving.choices import check_allowed
from router.serving.engine import Asked, Ended, Engine, Sampling

SERVICE = "greylag.v1.Query"
_AT_ONCE = 16
"""Inputs of one call that are asked at a time, so that many of them keep nobody else out."""


class QueryService(QueryServicer):
    """Answers batches, each input as a request of its own beside whatever else is asked.

    Args:
        engine: Runs the routed model.
        allowance: What a caller may ask for.
        trouble: Says why the model is not at the newest release; empty where it is.
    """

    def __init__(
        self, engine: Engine, allowance: Allowance = DEFAULT_ALLOWANCE, trouble: Callable[[], str] = str
    ) -> None:
        self._engine, self._model, self._allowance, self._trouble = engine, engine.model, allowance, trouble

    async def Ask(self, request: query_pb2.AskRequest, context: Context) -> AsyncIterator[query_pb2.AskPart]:
        """Answer a batch of inputs.

        Raises:
            Refused: `REQUEST_INVALID`, `METHOD_CLOSED`, or as `router.serving.engine.Engine.ask`.
            Unavailable: As there.
        """
        if len(request.inputs) > MAX_INPUTS or request.max_new_tokens > self._allowance.new_tokens:
            raise Refused(
                Code.REQUEST_INVALID,
                f"At most {MAX_INPUTS} inputs and {self._allowance.new_tokens} new tokens are taken in one request.",
                "Split the request.",
            )
        choices = [choice_from_wire(choice) for choice in request.choices] or [DEFAULT]
        for choice in dict.fromkeys(choices):
            check_allowed(self._model.held, choice, self._allowance)
        each = one_each(choices[0] if len(choices) == 1 else choices, len(request.inputs))
        prompts = await to_end(partial(self._read, request))
        most = Sampling(request.max_new_tokens or min(DEFAULT_NEW_TOKENS, self._allowance.new_tokens))
        asked = [Asked(*both, most, request.explain) for both in zip(prompts, each, strict=True)]
        for part in to_wire(merge_answers(await self._answers(asked))):
            yield part

    async def _answers(self, asked: Sequence[Asked]) -> list[Answered]:
        """Ask side by side; once one is refused, the others need not be answered."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def answer(each: Asked) -> Answered:
            async with places, aclosing(self._engine.ask(each)) as told:
                *_, last = [what async for what in told]
            return cast("Ended", last).answered

        asking = [asyncio.create_task(answer(each)) for each in asked]
        try:
            return await asyncio.gather(*asking)
        finally:
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def _read(self, request: query_pb2.AskRequest) -> list[Prompt]:
        inputs = [input_from_wire(each) for each in request.inputs]
        prompts = self._model.read(inputs, math.isqrt(MAX_SQUARED_TOKENS))
        longest = max(len(prompt.tokens) for prompt in prompts)
        if len(prompts) * longest**2 > MAX_SQUARED_TOKENS:
            raise Refused(
                Code.REQUEST_INVALID,
                f"{len(prompts)} inputs of up to {longest} tokens are too much for one request.",
                f"Send at most {math.isqrt(MAX_SQUARED_TOKENS // len(prompts))} tokens an input, or fewer inputs.",
            )
        return prompts

    async def Info(self, request: query_pb2.InfoRequest, context: Context) -> query_pb2.InfoReply:
        """Tell which release answers at this moment."""
        held = self._model.held
        return query_pb2.InfoReply(
            release=held.newest.release,
            experts=[expert.full_name for expert in held.newest.pool.experts],
            releases=held.releases,
            expires=timestamp(held.newest.expires) if held.newest.expires else "",
            expired=held.newest.expired,
            trouble=self._trouble(),
        )

    def register(self, server: grpc.aio.Server) -> tuple[str, ...]:
        """Add the service to a server."""
        add_QueryServicer_to_server(self, server)
        return (SERVICE,)
