"""The Query service over models that do what a test asks of them."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Centroid, Routing, Statistics
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryStub
from protocol.wire.grpc_client import connect
from protocol.wire.grpc_server import Listen, serve
from router.base.loading import load_base
from router.model.routed_model import RoutedModel
from router.query.client import choice_to_wire, from_wire, input_to_wire
from router.query.limits import DEFAULT_ALLOWANCE, Allowance
from router.query.request import DEFAULT, RoutingChoice
from router.serving import query_service
from router.serving.batches.opening import open_engine
from router.serving.engine import Engine
from router.serving.query_service import QueryService
from tests import factories


async def ask(service: QueryService, *inputs: str, choice: RoutingChoice = DEFAULT, new_tokens: int = 2) -> int:
    request = query_pb2.AskRequest(
        inputs=map(input_to_wire, inputs), max_new_tokens=new_tokens, choices=[choice_to_wire(choice)]
    )
    return len([part async for part in service.Ask(request, None)])  # type: ignore[arg-type] # it needs no context


class Serve(Protocol):
    def __call__(self, model: RoutedModel, allowance: Allowance = ...) -> QueryService: ...


@pytest.fixture
def serve_by() -> Iterator[Serve]:
    """Makes services, each with an engine of its own, and stops these."""
    engines: list[Engine] = []

    def make(model: RoutedModel, allowance: Allowance = DEFAULT_ALLOWANCE) -> QueryService:
        engine = open_engine(model, waiting=64, memory_share=0.02)
        engines.append(engine)
        engine.start()
        return QueryService(engine, allowance)

    yield make
    for engine in engines:
        engine.stop()


@pytest.fixture
def model(t5_base: Path, tmp_path: Path, identity: Identity) -> RoutedModel:
    pool = factories.make_pool(t5_base, identity)
    bundles = [
        factories.make_bundle(tmp_path / name, pool, identity, name=name, seed=len(name)) for name in ("a", "bb")
    ]
    return RoutedModel.from_bundles(str(t5_base), bundles, device="cpu")


def test_a_batch_is_answered_as_the_model_answers_it(model: RoutedModel, serve_by: Serve) -> None:
    inputs = ["a b", "say c", "please copy it : d", "a b"]
    choices = [RoutingChoice("expert:a"), RoutingChoice(), RoutingChoice("base"), RoutingChoice(k=1)]
    request = query_pb2.AskRequest(
        inputs=map(input_to_wire, inputs), max_new_tokens=5, choices=map(choice_to_wire, choices), explain=True
    )
    service = serve_by(model)

    async def parts() -> list[query_pb2.AskPart]:
        return [part async for part in service.Ask(request, None)]  # type: ignore[arg-type] # it needs no context

    found, expected = from_wire(asyncio.run(parts())), model.answer(inputs, choices, max_new_tokens=5, explain=True)
    assert found.experts == expected.experts
    for mine, other in zip(found.answers, expected.answers, strict=True):
        assert (mine.text, mine.method, mine.output_tokens) == (other.text, other.method, other.output_tokens)
        assert [each.module for each in mine.routes] == [each.module for each in other.routes]
        assert all((a.experts == b.experts).all() for a, b in zip(mine.routes, other.routes, strict=True))


def test_one_refusal_ends_the_call_and_whoever_gives_up_leaves_nothing_behind(
    model: RoutedModel, serve_by: Serve
) -> None:
    service = serve_by(model)

    async def becomes(busy: bool) -> bool:  # noqa: FBT001 - as it reads
        for _ in range(500):
            load = service._engine.load
            if bool(load.running or load.waiting) == busy:
                return True
            await asyncio.sleep(0.01)
        return False

    async def both() -> None:
        with pytest.raises(Refused) as refused:
            await ask(service, *["a b"] * 20, choice=RoutingChoice("expert:nobody"), new_tokens=500)
        assert refused.value.code is Code.EXPERT_UNKNOWN
        assert await becomes(busy=False)
        impatient = asyncio.create_task(ask(service, *["a b"] * 20, new_tokens=500))
        assert await becomes(busy=True)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert await becomes(busy=False)

    asyncio.run(asyncio.wait_for(both(), 60))


def test_who_denies_the_experts_that_a_method_cannot_take_is_answered(
    model: RoutedModel, t5_base: Path, tmp_path: Path, identity: Identity, serve_by: Serve
) -> None:
    pool = factories.make_pool(t5_base, identity)
    model.append(factories.make_bundle(tmp_path / "scales", pool, identity, name="scales", kind="ia3"))
    service, choice = serve_by(model, Allowance(methods=("arrow",))), RoutingChoice("arrow", deny=("scales",))
    assert model.generate("a b", choice, max_new_tokens=2)
    for _ in range(2):
        assert asyncio.run(ask(service, "a b", choice=choice))
        with pytest.raises(Refused) as refused:
            asyncio.run(ask(service, "a b", choice=RoutingChoice("arrow")))
        assert refused.value.code is Code.KIND_UNSUPPORTED


def test_retrieval_is_served_where_the_tokenizer_adds_no_special_tokens(
    tmp_path: Path, identity: Identity, serve_by: Serve
) -> None:
    base = factories.make_gpt2(tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    (base / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    pool, told = factories.make_pool(base, identity), Statistics(centroid=Centroid(width=32))
    bundle = factories.make_bundle(tmp_path / "a", pool, identity, name="a", statistics=told)
    model = RoutedModel.from_bundles(str(base), [bundle], device="cpu")
    service = serve_by(model, Allowance(methods=("retrieval",)))
    assert asyncio.run(ask(service, "a b", choice=RoutingChoice("retrieval")))


def test_arguments_that_change_nothing_are_not_prepared_for_again(model: RoutedModel) -> None:
    model.prepare(RoutingChoice("expert:a"))
    model.prepare(RoutingChoice("genknowsub:a"))
    assert model.prepared(RoutingChoice("expert:bb"))
    assert model.prepared(RoutingChoice("genknowsub:a"))
    assert not model.prepared(RoutingChoice("genknowsub:bb"))


def test_choices_are_counted_before_anything_is_worked_out(model: RoutedModel, serve_by: Serve) -> None:
    choices = [choice_to_wire(RoutingChoice(method)) for method in ("average-activation", "nnls-request")]
    request = query_pb2.AskRequest(inputs=[input_to_wire("a")] * 3, choices=choices)

    async def asked() -> None:
        async for _ in serve_by(model).Ask(request, None):  # type: ignore[arg-type] # as above
            pass

    with pytest.raises(Refused, match="3 inputs and 2 routing choices"):
        asyncio.run(asked())


@pytest.mark.parametrize("method", ["merged", "uniform", "spectr", "genknowsub:a"])
def test_methods_that_cost_much_are_the_operators_to_open(model: RoutedModel, method: str, serve_by: Serve) -> None:
    with pytest.raises(Refused) as refused:
        asyncio.run(ask(serve_by(model), "a", choice=RoutingChoice(method)))
    assert refused.value.code is Code.METHOD_CLOSED
    assert asyncio.run(ask(serve_by(model, Allowance((method.partition(":")[0],))), "a", choice=RoutingChoice(method)))
    model.generation = replace(model.generation, settings=Routing(method=method.partition(":")[0]))
    if ":" not in method:  # the release's own
        assert asyncio.run(ask(serve_by(model), "a"))
        assert asyncio.run(ask(serve_by(model), "a", choice=RoutingChoice(method)))


def test_how_much_work_a_caller_may_ask_for_is_the_operators(model: RoutedModel, serve_by: Serve) -> None:
    service = serve_by(model, Allowance(k=1, new_tokens=3))
    assert asyncio.run(ask(service, "a", choice=RoutingChoice("expert:bb", k=1), new_tokens=3))
    assert asyncio.run(ask(service, "a", new_tokens=0))
    for choice, new_tokens in ((RoutingChoice(k=2), 3), (DEFAULT, 4)):
        with pytest.raises(Refused) as refused:
            asyncio.run(ask(service, "a", choice=choice, new_tokens=new_tokens))
        assert refused.value.code is Code.REQUEST_INVALID
    with pytest.raises(Refused) as refused:
        asyncio.run(ask(service, "a", choice=RoutingChoice("magic")))
    assert refused.value.code is Code.METHOD_UNKNOWN


def test_an_expired_release_is_said_and_stops_where_the_operator_wants_it(model: RoutedModel, serve_by: Serve) -> None:
    model.generation = replace(model.generation, release=7, expires=datetime(2020, 1, 1, tzinfo=UTC))
    service = serve_by(model)

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


def test_a_request_that_would_take_too_much_memory(
    t5_base: Path, monkeypatch: pytest.MonkeyPatch, serve_by: Serve
) -> None:
    service = serve_by(RoutedModel(load_base(str(t5_base), device="cpu")))
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
