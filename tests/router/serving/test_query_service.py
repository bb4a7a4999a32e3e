"""The Query service over models that do what a test asks of them."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.errors import Code, Refused
from protocol.v1 import query_pb2
from router.base.loading import load_base
from router.model.routed_model import RoutedModel
from router.query.answer import Answered
from router.serving import query_service
from router.serving.query_service import QueryService


async def ask(service: QueryService, *inputs: str) -> int:
    request = query_pb2.AskRequest(inputs=inputs, max_new_tokens=2)
    return len([part async for part in service.Ask(request, None)])  # type: ignore[arg-type] # it needs no context


class Slow:
    """Answers when it is told to, and counts how many it answers at once."""

    def __init__(self, base: Any) -> None:
        self.base, self.entered, self.go = base, threading.Event(), threading.Event()
        self.now = self.most = self.calls = 0

    def answer(self, *_: object, **__: object) -> Answered:
        self.now, self.calls = self.now + 1, self.calls + 1
        self.most = max(self.most, self.now)
        self.entered.set()
        assert self.go.wait(10)
        self.now -= 1
        return Answered((), ())


def test_who_gives_up_lets_nobody_in_before_the_turn_is_over() -> None:
    base = SimpleNamespace(
        tokenizer=lambda *_, **__: {"input_ids": [1]}, architecture="encoder-decoder", positions=None
    )
    slow = Slow(base)
    service = QueryService(slow)  # type: ignore[arg-type] # all that it needs of a model

    async def impatient() -> None:
        first = asyncio.create_task(ask(service, "a"))
        assert await asyncio.to_thread(slow.entered.wait, 10)
        second = asyncio.create_task(ask(service, "a"))
        first.cancel()
        await asyncio.sleep(0.1)
        assert slow.calls == 1
        slow.go.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second

    asyncio.run(impatient())
    assert (slow.calls, slow.most) == (2, 1)


def test_a_request_that_would_take_too_much_memory(t5_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = QueryService(RoutedModel(load_base(str(t5_base), device="cpu")))
    monkeypatch.setattr(query_service, "MAX_SQUARED_TOKENS", 2 * 4**2)
    assert asyncio.run(ask(service, "a b c", "a"))  # the end mark is the fourth
    with pytest.raises(Refused, match="3 inputs of up to 4 tokens") as error:
        asyncio.run(ask(service, "a b c", "a", "b"))
    assert error.value.code is Code.REQUEST_INVALID
    assert "3 tokens an input" in error.value.hint


def test_positions_end_an_answer_and_refuse_an_input(gpt2_base: Path) -> None:
    model = RoutedModel(load_base(str(gpt2_base), device="cpu"))
    positions = model.base.positions
    assert positions is not None
    words = ["a"] * (positions - 2)  # and the begin mark
    answer = model.answer([" ".join(words)], max_new_tokens=64, explain=True).answers[0]
    assert len(answer.input_tokens) == positions - 1
    assert len(answer.output_tokens) == 1
    with pytest.raises(Refused, match=f"Input 2 is {positions} tokens long; the model takes at most {positions - 1}"):
        model.generate(["a", " ".join([*words, "a"])])
