"""The Query service: a routed model that answers over gRPC."""
# ruff: noqa: N802, ARG002 - gRPC decides the names, and what is passed

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from functools import partial

import grpc

from protocol.documents import timestamp
from protocol.errors import Code, Refused
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryServicer, add_QueryServicer_to_server
from protocol.wire.grpc_server import to_end
from protocol.wire.peer import Context
from router.base.batching import Prompt
from router.base.device_map import is_offloaded
from router.model.routed_model import RoutedModel
from router.query.client import choice_from_wire, input_from_wire, to_wire
from router.query.limits import DEFAULT_ALLOWANCE, DEFAULT_NEW_TOKENS, MAX_INPUTS, MAX_SQUARED_TOKENS, Allowance
from router.query.request import DEFAULT, one_each
from router.serving.choices import Preparing, check_allowed

SERVICE = "greylag.v1.Query"


class QueryService(QueryServicer):
    """Answers one batch at a time.

    Args:
        model: The routed model; someone else keeps it at the newest release.
        allowance: What a caller may ask for.
        trouble: Says why the model is not at the newest release; empty where it is.
    """

    def __init__(
        self, model: RoutedModel, allowance: Allowance = DEFAULT_ALLOWANCE, trouble: Callable[[], str] = str
    ) -> None:
        self._model, self._allowance, self._trouble = model, allowance, trouble
        # One batch fills the device; the others wait in the order in which they came.
        self._turn = asyncio.Lock()
        # Where weights come when a module runs, and go again, two passes at once would miss some.
        self._preparing = Preparing(model, self._turn if is_offloaded(model.base.model) else None)

    async def Ask(self, request: query_pb2.AskRequest, context: Context) -> AsyncIterator[query_pb2.AskPart]:
        """Answer a batch of inputs.

        Raises:
            Refused: `REQUEST_INVALID`, `METHOD_CLOSED`, or as `router.model.planner.plan`.
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
        for choice in dict.fromkeys(choices):
            await self._preparing.prepare(choice)
        most = request.max_new_tokens or min(DEFAULT_NEW_TOKENS, self._allowance.new_tokens)
        asked = partial(self._model.answer, prompts, each, max_new_tokens=most, explain=request.explain)
        async with self._turn:
            answered = await to_end(asked)
        for part in to_wire(answered):
            yield part

    def _read(self, request: query_pb2.AskRequest) -> list[Prompt]:
        prompts = self._model.read([input_from_wire(each) for each in request.inputs])
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
