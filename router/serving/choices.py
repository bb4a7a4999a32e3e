"""A caller's routing choice at any door: whether it is open to callers, and what it needs worked out beforehand."""

import asyncio
from collections import defaultdict
from contextlib import nullcontext
from functools import partial

from protocol.errors import Code, Refused
from protocol.wire.grpc_server import to_end
from router.methods import find_method
from router.model.releases import Held
from router.model.routed_model import RoutedModel
from router.query.limits import Allowance
from router.query.request import RoutingChoice


def check_allowed(held: Held, choice: RoutingChoice, allowance: Allowance) -> None:
    """Refuse what the router's operator keeps to himself.

    Raises:
        Refused: `REQUEST_INVALID`, `METHOD_CLOSED`, `METHOD_UNKNOWN`, or as `Held.find`.
    """
    most = allowance.k
    if choice.k is not None and choice.k > most:
        raise Refused(Code.REQUEST_INVALID, f"k is {choice.k}; at most {most} are taken.", "Ask for fewer experts.")
    own = held.find(choice.release).settings.method
    if choice.method is None or choice.method == own:
        return
    find_method(choice.method)
    if choice.method.partition(":")[0] not in allowance.methods:
        raise Refused(
            Code.METHOD_CLOSED,
            f"The router takes no requests by {choice.method:.100}; it takes {', '.join(allowance.methods)}.",
            "Ask for one of them, or ask its operator to open more with `methods` in router.toml.",
        )


class Preparing:
    """Works out what a method needs once for all requests, which takes seconds to minutes, before anybody's turn.

    Args:
        model: The routed model.
        alone: What the model's turn is locked by, where nothing may run beside it.
    """

    def __init__(self, model: RoutedModel, alone: asyncio.Lock | None = None) -> None:
        self._model, self._alone = model, alone or nullcontext()
        # Nobody waits for another method's.
        self._methods: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def prepare(self, choice: RoutingChoice) -> None:
        """See that a choice's method is prepared; whoever comes for the same one meanwhile waits for it.

        Raises:
            Refused: As `router.model.planner.plan`.
        """
        prepared = partial(self._model.prepared, choice)
        if await to_end(prepared):
            return
        method = choice.method or self._model.held.find(choice.release).settings.method
        async with self._methods[find_method(method)]:
            if not await to_end(prepared):  # somebody who came before may have seen to it
                async with self._alone:
                    await to_end(partial(self._model.prepare, choice))
