"""What methods work out once, and the engine beside it."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from protocol.errors import Code, Unavailable
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from router.serving.batches import loop
from router.serving.engine import Asked, Engine
from tests.router.serving.asking import (
    LONGEST_S,
    SHORT,
    Gate,
    Heard,
    ask_for,
    ask_one,
    fail,
    heard,
    refusals,
    tokens,
)


def test_whoever_runs_the_model_beside_a_batch_is_answered_as_ever(
    model: RoutedModel, opened: Callable[..., Engine]
) -> None:
    engine, asked = opened(), ask_for(model, "please reverse it : a b c")
    read = partial(model.losses, ["please reverse it : a b c"], ["c b a"])
    expected = read()
    entered, go = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        if threading.current_thread().name == "engine":
            entered.set()
            assert go.wait(LONGEST_S)

    async def beside() -> list[float]:
        asking = asyncio.create_task(heard(engine, asked))
        assert await asyncio.to_thread(entered.wait, LONGEST_S)
        found = await asyncio.to_thread(read)
        go.set()
        assert len(tokens(await asyncio.wait_for(asking, LONGEST_S))) == 3
        return found

    handle = model.base.model.get_submodule("model.norm").register_forward_hook(hold)
    try:
        assert asyncio.run(beside()) == expected
    finally:
        go.set()
        handle.remove()
    assert read() == expected


def test_nobody_waits_for_what_another_one_s_method_works_out_first(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prepare = opened(), model.prepare
    gate = Gate(prepare)
    ask_one(engine, ask_for(model))  # what the release routes by is prepared

    def slow(choice: RoutingChoice) -> None:
        (gate if choice.method == "arrow" else prepare)(choice)

    monkeypatch.setattr(model, "prepare", slow)
    (prompt,) = model.read(["say a"])
    slow_one = Asked(prompt, RoutingChoice("arrow", deny=("e1",)), SHORT)

    async def both() -> list[Heard]:
        waiting = [asyncio.create_task(heard(engine, slow_one)) for _ in range(2)]
        assert await asyncio.to_thread(gate.entered.wait, LONGEST_S)
        await asyncio.wait_for(heard(engine, Asked(prompt, RoutingChoice("base"), SHORT)), LONGEST_S)
        assert engine.load.waiting == 2
        gate.go.set()
        return await asyncio.wait_for(asyncio.gather(*waiting), LONGEST_S)

    first, second = asyncio.run(both())
    assert tokens(first) == tokens(second)
    assert model.prepared(slow_one.choice)


def test_methods_are_prepared_side_by_side_and_each_once(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, gate, asked = opened(), Gate(model.prepare), ask_for(model)
    prepared: list[str | None] = []

    def noted(choice: RoutingChoice) -> None:
        prepared.append(choice.method)
        gate(choice)

    monkeypatch.setattr(model, "prepare", noted)
    methods = ["lag", "spectr"]

    async def several() -> None:
        choices = [RoutingChoice(method, allow=("e0",)) for method in methods for _ in range(2)]
        asking = [asyncio.create_task(heard(engine, replace(asked, choice=choice))) for choice in choices]
        for _ in range(500):
            if len(prepared) == len(methods):
                break
            await asyncio.sleep(0.01)
        gate.go.set()
        await asyncio.wait_for(asyncio.gather(*asking), LONGEST_S)

    asyncio.run(several())
    assert sorted(filter(None, prepared)) == methods


def test_nothing_runs_beside_a_base_whose_weights_come_and_go(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "is_offloaded", lambda _: True)
    engine, prepare, threads = opened(), model.prepare, list[str]()

    def noted(choice: RoutingChoice) -> None:
        threads.append(threading.current_thread().name)
        prepare(choice)

    monkeypatch.setattr(model, "prepare", noted)
    assert tokens(ask_one(engine, replace(ask_for(model), choice=RoutingChoice("arrow", allow=("e1",)))))
    assert threads == ["engine"]


def test_a_preparation_that_fails_is_told_to_whoever_needed_it(
    model: RoutedModel, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    ask_one(engine, ask_for(model))
    monkeypatch.setattr(model, "prepare", fail)
    (prompt,) = model.read(["say a"])
    (refused,) = refusals(engine, [Asked(prompt, RoutingChoice("spectr"), SHORT)])
    assert isinstance(refused, Unavailable)
    assert refused.code is Code.INTERNAL
    assert tokens(ask_one(engine, ask_for(model)))
