"""The answers to one request, as they are written: several at once, in one stream of parts."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing

from router.serving.engine import Asked, Ended, Engine, Written

Told = tuple[int, Written | Ended]
"""A part, and of which answer."""


class Answers:
    """Asks the engine at once for all that a request asks, and iterates over what comes, as it comes.

    Each answer has a task of its own, which a server that cancels the reader, again and again until it is gone, does
    not reach: so what was asked is always taken back.

    Args:
        engine: Who answers.
        asked: What is asked.
        place: Keeps a place for an answer, or refuses one.
    """

    def __init__(
        self, engine: Engine, asked: Sequence[Asked], place: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        self._engine, self._place = engine, place
        self._parts: asyncio.Queue[Told | Exception] = asyncio.Queue()  # bounded by the answers' length
        self._open = len(asked)
        self._tasks = [asyncio.create_task(self._pump(at, each)) for at, each in enumerate(asked)]

    def stop(self) -> None:
        """Take what is not answered yet out of the engine; for whatever reason nobody wants it any more."""
        for task in self._tasks:
            task.cancel()

    def __aiter__(self) -> "Answers":
        """Iterate over it itself."""
        return self

    async def __anext__(self) -> Told:
        """Wait for the next part of any answer.

        Raises:
            Refused: As `Engine.ask`, for any of the answers; there is no use then in the others, so stop them.
            Unavailable: Likewise.
        """
        if not self._open:
            raise StopAsyncIteration
        part = await self._parts.get()
        if isinstance(part, Exception):
            raise part
        if isinstance(part[1], Ended):
            self._open -= 1
        return part

    async def _pump(self, at: int, asked: Asked) -> None:
        try:
            async with self._place(), aclosing(self._engine.ask(asked)) as parts:
                async for part in parts:
                    self._parts.put_nowait((at, part))
        except Exception as error:  # noqa: BLE001 - whoever iterates is told
            self._parts.put_nowait(error)
