"""Ask an engine, several at a time."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from protocol.errors import GreylagError
from router.model.routed_model import RoutedModel
from router.serving.engine import Asked, Ended, Engine, Sampling, Written

LONGEST_S = 30.0
Heard = list[Written | Ended]
SHORT = Sampling(max_new_tokens=3)
LONG = Sampling(max_new_tokens=100)


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


def ask_for(model: RoutedModel, text: str = "say a b", sampling: Sampling = SHORT) -> Asked:
    (prompt,) = model.read([text])
    return Asked(prompt, sampling=sampling)


class Gate:
    """Holds up whatever passes through it until it is opened."""

    def __init__(self, passed: Callable[..., Any]) -> None:
        self._passed, self.entered, self.go = passed, threading.Event(), threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.entered.set()
        assert self.go.wait(LONGEST_S)
        return self._passed(*args, **kwargs)


def fail(*_: object, **__: object) -> None:
    raise ZeroDivisionError
