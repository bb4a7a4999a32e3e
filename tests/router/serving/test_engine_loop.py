"""What an engine does when there is too much to do, when it is stopped, and when it fails."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from protocol.errors import Code, GreylagError, Refused, Unavailable
from router.layer.batch_rows import inseparable
from router.model.planner import plan
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from router.serving.batches import loop
from router.serving.batches.loop import BatchEngine
from router.serving.batches.opening import open_engine
from router.serving.batches.packed import PackedBatch
from router.serving.engine import Engine, Sampling, Written
from tests.router.serving.asking import (
    LONG,
    LONGEST_S,
    Gate,
    Heard,
    ask_all,
    ask_for,
    ask_one,
    ended,
    fail,
    heard,
    refusals,
    tokens,
)


def test_whoever_finds_the_queue_full_is_told_so(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(waiting=2, seats=1)
    gate = Gate(model.base.model.forward)
    monkeypatch.setattr(model.base.model, "forward", gate)
    asked = ask_for(model)

    async def crowd() -> tuple[Heard, Heard]:
        running = asyncio.create_task(heard(engine, asked))
        assert await asyncio.to_thread(gate.entered.wait, LONGEST_S)
        waiting = [asyncio.create_task(heard(engine, asked)) for _ in range(2)]
        await asyncio.sleep(0)
        assert (engine.load.running, engine.load.waiting) == (1, 2)
        with pytest.raises(Unavailable) as refused:
            await heard(engine, asked)
        assert refused.value.code is Code.BUSY
        # One of those who wait goes away, and another takes the place.
        waiting[0].cancel()
        with suppress(asyncio.CancelledError):
            await waiting[0]
        gate.go.set()
        return await asyncio.wait_for(asyncio.gather(running, waiting[1]), LONGEST_S)

    first, second = asyncio.run(crowd())
    assert len(tokens(first)) == 3
    assert tokens(first) == tokens(second) == tokens(ask_one(engine, asked))


def test_memory_that_is_taken_is_waited_for_and_given_back(model: RoutedModel) -> None:
    # Three pages are 96 tokens: two of these requests never fit at a time.
    asked = ask_for(model, sampling=Sampling(max_new_tokens=40))
    pack = partial(PackedBatch, model.base, pages=3, seats=8)
    tight = BatchEngine(model, pack, room=3, seats=8, waiting=8)
    most = 0
    tight.start()

    async def watched() -> list[Heard]:
        nonlocal most
        asking = [asyncio.create_task(heard(tight, asked)) for _ in range(4)]
        while not all(each.done() for each in asking):
            most = max(most, tight.load.running)
            await asyncio.sleep(0.001)
        return [each.result() for each in asking]

    told = asyncio.run(asyncio.wait_for(watched(), LONGEST_S))
    assert [len(tokens(each)) for each in told] == [40] * 4
    assert most == 1
    # What never fits is refused, and an answer ends where memory does.
    long = ask_for(model, " ".join(["a"] * 90), LONG)
    assert (ended(ask_one(tight, long)).reason, ended(ask_one(tight, long)).output_tokens) == ("length", 5)
    (refused,) = refusals(tight, [ask_for(model, " ".join(["a"] * 96), LONG)])
    assert isinstance(refused, Refused)
    assert refused.code is Code.DATA_TOO_LONG
    tight.stop()


def test_what_was_begun_may_end_before_it_stops_and_nothing_begins(
    model: RoutedModel, opened: Callable[..., Engine]
) -> None:
    engine, asked = opened(), ask_for(model, sampling=LONG)

    async def stopped(drain_s: float) -> tuple[int, GreylagError | None]:
        found, error = 0, None
        try:
            async with aclosing(engine.ask(asked)) as told:
                async for each in told:
                    if not found:
                        stopping = asyncio.create_task(asyncio.to_thread(engine.stop, drain_s))
                    found += isinstance(each, Written)
        except GreylagError as refused:
            error = refused
        await asyncio.wait_for(stopping, LONGEST_S)
        return found, error

    assert asyncio.run(stopped(LONGEST_S)) == (100, None)
    (late,) = refusals(engine, [asked])
    assert isinstance(late, Unavailable)
    assert late.code is Code.BUSY
    engine = opened()
    found, error = asyncio.run(stopped(0.0))
    assert found < 100
    assert isinstance(error, Unavailable)
    assert error.code is Code.BUSY
    assert (engine.load.running, engine.load.waiting) == (0, 0)
    with pytest.raises(ValueError, match="before"):
        engine.start()


def test_an_engine_that_fails_says_so_to_everybody(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(seats=1)
    monkeypatch.setattr(model.base.model, "forward", fail)
    told = refusals(engine, [ask_for(model)] * 3)
    assert [(type(each), each.code) for each in told if isinstance(each, GreylagError)] == [
        (Unavailable, Code.INTERNAL)
    ] * 3
    assert "failed" in engine.load.trouble
    (late,) = refusals(engine, [ask_for(model)])
    assert isinstance(late, Unavailable)
    assert late.code is Code.INTERNAL
    assert (engine.load.running, engine.load.waiting) == (0, 0)


def test_an_engine_that_cannot_open_says_so_at_once(model: RoutedModel) -> None:
    def full() -> None:
        raise Unavailable(Code.MEMORY_FULL, "full")

    for opening, code in ((full, Code.MEMORY_FULL), (fail, Code.INTERNAL)):
        engine = BatchEngine(model, opening, room=1, seats=1, waiting=1)  # type: ignore[arg-type] # as told
        with pytest.raises(Unavailable) as refused:
            engine.start()
        assert refused.value.code is code
        assert engine.load.trouble
        engine.stop()


def test_a_request_that_cannot_be_planned_is_the_only_one_to_fail(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked, planned = opened(), ask_for(model), plan
    wrong = replace(asked, choice=RoutingChoice("expert:e1"))

    def faulty(*arguments: Any) -> Any:
        return fail() if arguments[-1] == [wrong.choice] else planned(*arguments)

    monkeypatch.setattr(loop, "plan", faulty)
    first, refused, second = refusals(engine, [asked, wrong, asked])
    assert isinstance(refused, Unavailable)
    assert refused.code is Code.INTERNAL
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert tokens(first) == tokens(second)
    assert engine.load.trouble == ""


def test_the_token_that_a_checkpoint_wants_last_is_the_last(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = model.base.model.generation_config, ask_for(model)
    monkeypatch.setattr(config, "min_new_tokens", 2)
    monkeypatch.setattr(config, "forced_eos_token_id", 1)
    told = ask_one(opened(), asked)
    answer = model.answer([asked.prompt], max_new_tokens=3, explain=True).answers[0]
    assert answer.output_tokens[2:] == ("</s>",)
    assert (len(tokens(told)), ended(told).reason, ended(told).output_tokens) == (2, "stop", 3)
    assert ended(told).answered.answers[0].text == answer.text


def test_a_step_for_which_memory_lacks_ends_those_in_it_alone(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked = opened(), ask_for(model)
    expected = tokens(ask_one(engine, asked))
    with monkeypatch.context() as patch:

        def full(**_: object) -> None:
            raise torch.OutOfMemoryError

        patch.setattr(model.base.model, "forward", full)
        (refused,) = refusals(engine, [asked])
    assert isinstance(refused, Unavailable)
    assert refused.code is Code.MEMORY_FULL
    assert tokens(ask_one(engine, asked)) == expected
    assert engine.load.trouble == ""


def test_whoever_goes_is_in_no_step_that_begins_later(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked, rows = opened(), ask_for(model, sampling=LONG), list[int]()
    gate = Gate(model.base.model.forward)

    def counted(**batch: Any) -> Any:
        rows.append(len(batch["logits_indices"]))
        return (gate if rows[-1] > 1 else gate._passed)(**batch)

    monkeypatch.setattr(model.base.model, "forward", counted)

    async def both() -> Heard:
        staying, going = (asyncio.create_task(heard(engine, asked)) for _ in range(2))
        assert await asyncio.to_thread(gate.entered.wait, LONGEST_S)
        going.cancel()
        with suppress(asyncio.CancelledError):
            await going
        gate.go.set()
        return await asyncio.wait_for(staying, LONGEST_S)

    assert len(tokens(asyncio.run(both()))) == 100
    assert rows.count(2) == 1
    assert rows[-50:] == [1] * 50


def test_a_base_that_mixes_requests_up_is_asked_one_at_a_time(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, forward = opened(), model.base.model.forward
    asked = [ask_for(model, text) for text in ("say a b", "say c", "copy it : d")]
    expected = [tokens(told) for told in ask_all(engine, asked)]
    rows: list[int] = []

    def mixed_up(**batch: Any) -> Any:
        rows.append(len(batch["logits_indices"]))
        if rows[-1] > 1:
            raise inseparable("a.module")
        return forward(**batch)

    monkeypatch.setattr(model.base.model, "forward", mixed_up)
    gate = Gate(model.prepared)
    monkeypatch.setattr(model, "prepared", gate)

    async def together() -> list[Heard]:
        asking = [asyncio.create_task(heard(engine, each)) for each in asked]
        assert await asyncio.to_thread(gate.entered.wait, LONGEST_S)
        gate.go.set()
        return await asyncio.wait_for(asyncio.gather(*asking), LONGEST_S)

    assert [tokens(told) for told in asyncio.run(together())] == expected
    assert max(rows) > 1


def test_a_share_that_holds_no_request_is_refused(model: RoutedModel) -> None:
    with pytest.raises(Unavailable) as refused:
        open_engine(model, waiting=1, memory_share=1e-9)
    assert refused.value.code is Code.MEMORY_FULL
