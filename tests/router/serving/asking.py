"""Ask an engine, several at a time."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from protocol.errors import GreylagError
from router.serving.engine import Asked, Ended, Engine, Written

LONGEST_S = 30.0
Heard = list[Written | Ended]


async def heard(engine: Engine, asked: Asked) -> Heard:
    async with aclosing(engine.ask(asked)) as told:
        return [each async for each in told]


def ask_all(engine: Engine, asked: Sequence[Asked]) -> list[Heard]:
    """Ask side by side; every request is answered."""

    async def everybody() -> list[Heard]:
        return await asyncio.wait_for(asyncio.gather(*(heard(engine, each) for each in asked)), LONGEST_S)

    return asyncio.run(everybody())


def ask_one(engine: Engine, asked: Asked) -> Heard:
    return ask_all(engine, [asked])[0]


def refusals(engine: Engine, asked: Sequence[Asked]) -> list[GreylagError | Heard]:
    """Ask side by side; what each is told, be it a refusal."""

    async def everybody() -> list[GreylagError | Heard | BaseException]:
        asking = asyncio.gather(*(heard(engine, each) for each in asked), return_exceptions=True)
        return await asyncio.wait_for(asking, LONGEST_S)

    found: list[GreylagError | Heard] = []
    for each in asyncio.run(everybody()):
        if isinstance(each, BaseException) and not isinstance(each, GreylagError):
            raise each
        found.append(each)
    return found


def tokens(told: Heard) -> list[int]:
    return [each.token for each in told if isinstance(each, Written)]


def text(told: Heard) -> str:
    """What was told, put together."""
    return "".join(each.text for each in told)


def ended(told: Heard) -> Ended:
    assert isinstance(told[-1], Ended)
    return told[-1]
