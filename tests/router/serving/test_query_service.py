"""The Query service over models that do what a test asks of them."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch import nn

from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Centroid, Routing, Statistics
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryStub
from protocol.wire.grpc_client import connect
from protocol.wire.grpc_server import Listen, serve
from router.base.batching import Prompt
from router.base.loading import load_base
from router.model.releases import Held
from router.model.routed_model import RoutedModel
from router.pool import prototypes
from router.query.answer import Answered
from router.query.client import choice_to_wire, input_to_wire
from router.query.limits import Allowance
from router.query.request import DEFAULT, RoutingChoice
from router.serving import query_service
from router.serving.query_service import QueryService
from tests import factories


async def ask(service: QueryService, *inputs: str, choice: RoutingChoice = DEFAULT, new_tokens: int = 2) -> int:
    request = query_pb2.AskRequest(
        inputs=map(input_to_wire, inputs), max_new_tokens=new_tokens, choices=[choice_to_wire(choice)]
    )
    return len([part async for part in service.Ask(request, None)])  # type: ignore[arg-type] # it needs no context


class Slow:
    """Answers, or prepares, when it is told to, and counts how many pass through it at once."""

    def __init__(self, *, offloaded: bool = False) -> None:
        self.base = SimpleNamespace(model=nn.Linear(1, 1, device="meta" if offloaded else "cpu"))
        self.held, self.entered, self.go = Held(), threading.Event(), threading.Event()
        self.now = self.most = self.calls = 0
        self.prepares: list[str | None] = []
        self.ready: set[str | None] = {None}

    def read(self, inputs: list[str]) -> list[Prompt]:
        return [Prompt(text, [1]) for text in inputs]

    def prepared(self, choice: RoutingChoice) -> bool:
        return choice.method in self.ready

    def prepare(self, choice: RoutingChoice) -> None:
        self.prepares.append(choice.method)
        self.pass_through()
        self.ready.add(choice.method)

    def answer(self, *_: object, **__: object) -> Answered:
        self.calls += 1
        self.pass_through()
        return Answered((), ())

    def pass_through(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.entered.set()
        assert self.go.wait(10)
        self.now -= 1


def test_who_gives_up_lets_nobody_in_before_the_turn_is_over() -> None:
    slow = Slow()
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


def test_nobody_waits_for_what_another_ones_method_works_out_first() -> None:
    slow = Slow()
    service = QueryService(slow)  # type: ignore[arg-type] # all that it needs of a model

    async def both() -> None:
        first = asyncio.create_task(ask(service, "a", choice=RoutingChoice("average-activation")))
        assert await asyncio.to_thread(slow.entered.wait, 10)
        slow.entered.clear()
        second = asyncio.create_task(ask(service, "a"))
        assert await asyncio.to_thread(slow.entered.wait, 10)  # it is being answered
        assert (slow.calls, first.done()) == (1, False)
        slow.go.set()
        await asyncio.gather(first, second)

    asyncio.run(both())
    assert (slow.calls, slow.most) == (2, 2)


def test_one_pass_at_a_time_where_weights_come_and_go() -> None:
    slow = Slow(offloaded=True)
    service = QueryService(slow)  # type: ignore[arg-type] # all that it needs of a model

    async def both() -> None:
        first = asyncio.create_task(ask(service, "a"))
        assert await asyncio.to_thread(slow.entered.wait, 10)
        slow.entered.clear()
        second = asyncio.create_task(ask(service, "a", choice=RoutingChoice("average-activation")))
        assert not await asyncio.to_thread(slow.entered.wait, 0.2)
        slow.go.set()
        await asyncio.gather(first, second)

    asyncio.run(both())
    assert (slow.calls, slow.most, len(slow.prepares)) == (2, 1, 1)


def test_methods_are_prepared_side_by_side_and_each_once() -> None:
    slow = Slow()
    service = QueryService(slow)  # type: ignore[arg-type] # all that it needs of a model

    async def several() -> None:
        asking = []
        for method in ("average-activation", "nnls-request"):
            asking += [asyncio.create_task(ask(service, "a", choice=RoutingChoice(method))) for _ in range(2)]
            assert await asyncio.to_thread(slow.entered.wait, 10)
            slow.entered.clear()
        slow.go.set()
        await asyncio.gather(*asking)

    asyncio.run(several())
    assert (slow.prepares, slow.calls) == (["average-activation", "nnls-request"], 4)


@pytest.fixture
def model(t5_base: Path, tmp_path: Path, identity: Identity) -> RoutedModel:
    pool = factories.make_pool(t5_base, identity)
    bundles = [
        factories.make_bundle(tmp_path / name, pool, identity, name=name, seed=len(name)) for name in ("a", "bb")
    ]
    return RoutedModel.from_bundles(str(t5_base), bundles, device="cpu")


def test_vectors_are_worked_out_before_the_turn(model: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    service = QueryService(model, Allowance(methods=("arrow",)))
    places: list[str] = []
    direction, answer = prototypes.first_direction, model.answer

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def note(*arguments: object, **options: object) -> object:
            places.append(name)
            return call(*arguments, **options)

        return note

    monkeypatch.setattr(prototypes, "first_direction", noted("vector", direction))
    monkeypatch.setattr(model, "answer", noted("answer", answer))
    for _ in range(2):
        asyncio.run(ask(service, "a b", choice=RoutingChoice("arrow")))
    assert places.count("answer") == 2
    assert places.index("answer") == places.count("vector") > 0


def test_who_denies_the_experts_that_a_method_cannot_take_is_answered(
    model: RoutedModel, t5_base: Path, tmp_path: Path, identity: Identity
) -> None:
    pool = factories.make_pool(t5_base, identity)
    model.append(factories.make_bundle(tmp_path / "scales", pool, identity, name="scales", kind="ia3"))
    service, choice = QueryService(model, Allowance(methods=("arrow",))), RoutingChoice("arrow", deny=("scales",))
    assert model.generate("a b", choice, max_new_tokens=2)
    for _ in range(2):
        assert asyncio.run(ask(service, "a b", choice=choice))
        with pytest.raises(Refused) as refused:
            asyncio.run(ask(service, "a b", choice=RoutingChoice("arrow")))
        assert refused.value.code is Code.KIND_UNSUPPORTED


def test_retrieval_is_served_where_the_tokenizer_adds_no_special_tokens(tmp_path: Path, identity: Identity) -> None:
    base = factories.make_gpt2(tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    (base / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    pool, told = factories.make_pool(base, identity), Statistics(centroid=Centroid(width=32))
    bundle = factories.make_bundle(tmp_path / "a", pool, identity, name="a", statistics=told)
    model = RoutedModel.from_bundles(str(base), [bundle], device="cpu")
    service = QueryService(model, Allowance(methods=("retrieval",)))
    assert asyncio.run(ask(service, "a b", choice=RoutingChoice("retrieval")))


def test_arguments_that_change_nothing_are_not_prepared_for_again(model: RoutedModel) -> None:
    model.prepare(RoutingChoice("expert:a"))
    model.prepare(RoutingChoice("genknowsub:a"))
    assert model.prepared(RoutingChoice("expert:bb"))
    assert model.prepared(RoutingChoice("genknowsub:a"))
    assert not model.prepared(RoutingChoice("genknowsub:bb"))


def test_choices_are_counted_before_anything_is_worked_out() -> None:
    slow = Slow()
    slow.go.set()
    choices = [choice_to_wire(RoutingChoice(method)) for method in ("average-activation", "nnls-request")]
    request = query_pb2.AskRequest(inputs=[input_to_wire("a")] * 3, choices=choices)

    async def asked() -> None:
        async for _ in QueryService(slow).Ask(request, None):  # type: ignore[arg-type] # as above
            pass

    with pytest.raises(Refused, match="3 inputs and 2 routing choices"):
        asyncio.run(asked())
    assert slow.prepares == []


@pytest.mark.parametrize("method", ["merged", "uniform", "spectr", "genknowsub:a"])
def test_methods_that_cost_much_are_the_operators_to_open(model: RoutedModel, method: str) -> None:
    with pytest.raises(Refused) as refused:
        asyncio.run(ask(QueryService(model), "a", choice=RoutingChoice(method)))
    assert refused.value.code is Code.METHOD_CLOSED
    assert asyncio.run(
        ask(QueryService(model, Allowance((method.partition(":")[0],))), "a", choice=RoutingChoice(method))
    )
    model.generation = replace(model.generation, settings=Routing(method=method.partition(":")[0]))
    if ":" not in method:  # the release's own
        assert asyncio.run(ask(QueryService(model), "a"))
        assert asyncio.run(ask(QueryService(model), "a", choice=RoutingChoice(method)))


def test_how_much_work_a_caller_may_ask_for_is_the_operators(model: RoutedModel) -> None:
    service = QueryService(model, Allowance(k=1, new_tokens=3))
    assert asyncio.run(ask(service, "a", choice=RoutingChoice("expert:bb", k=1), new_tokens=3))
    assert asyncio.run(ask(service, "a", new_tokens=0))
    for choice, new_tokens in ((RoutingChoice(k=2), 3), (DEFAULT, 4)):
        with pytest.raises(Refused) as refused:
            asyncio.run(ask(service, "a", choice=choice, new_tokens=new_tokens))
        assert refused.value.code is Code.REQUEST_INVALID
    with pytest.raises(Refused) as refused:
        asyncio.run(ask(service, "a", choice=RoutingChoice("magic")))
    assert refused.value.code is Code.METHOD_UNKNOWN


def test_an_expired_release_is_said_and_stops_where_the_operator_wants_it(model: RoutedModel) -> None:
    model.generation = replace(model.generation, release=7, expires=datetime(2020, 1, 1, tzinfo=UTC))
    service = QueryService(model)

    def look(port: int) -> tuple[query_pb2.InfoReply, int]:
        with connect(f"127.0.0.1:{port}") as channel:
            info = QueryStub(channel).Info(query_pb2.InfoRequest(), timeout=10)
            wanted = health_pb2.HealthCheckRequest(service=query_service.SERVICE)
            return info, health_pb2_grpc.HealthStub(channel).Check(wanted, timeout=10).status

    def served() -> tuple[query_pb2.InfoReply, int]:
        async def both() -> tuple[query_pb2.InfoReply, int]:
            ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            healthy = lambda: model.held.answering  # noqa: E731
            serving = serve(Listen("127.0.0.1:0"), service.register, on_ready=ready.set_result, healthy=healthy)
            task = asyncio.create_task(serving)
            try:
                return await asyncio.to_thread(look, await asyncio.wait_for(ready, 30))
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        return asyncio.run(both())

    info, health = served()
    assert (info.expired, info.expires, health) == (True, "2020-01-01T00:00:00Z", 1)
    assert asyncio.run(ask(service, "a"))
    model.held = replace(model.held, answers_expired=False)
    info, health = served()
    assert (info.expired, health) == (True, 2)
    with pytest.raises(Refused) as refused:
        asyncio.run(ask(service, "a"))
    assert refused.value.code is Code.RELEASE_EXPIRED
    model.generation = replace(model.generation, expires=datetime(2126, 1, 1, tzinfo=UTC))
    assert not served()[0].expired
    assert asyncio.run(ask(service, "a"))


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
