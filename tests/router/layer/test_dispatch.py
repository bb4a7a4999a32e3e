"""Every way to compute the routed layer, against the float64 reference."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from router.layer import experts_cpu
from router.layer.autotune import Autotuner
from router.layer.choice import Choice, CommonChoice
from router.layer.dispatch import add_experts, dispatch, offered
from router.layer.routed_linear import RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, error, in_dtype, make_experts, make_layer
from tests.router.reference import route

WAYS = {
    "sorted": experts_cpu.add_sorted,
    "one by one": experts_cpu.add_one_by_one,
    "concatenated": experts_cpu.add_concatenated,
    "grouped": experts_cpu.add_grouped,
}


@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 300])
@pytest.mark.parametrize("count", [1, 3, 17, 200])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_layer_agrees_with_the_reference(tokens: int, count: int, k: int) -> None:
    # Ranks 1 to 7, five alphas, every third expert absent, fewer experts than k.
    pool, slow = make_experts(count, 48, 40, absent=3 if count > 3 else 0, seed=count)
    layer = make_layer(48, 40)
    u = torch.randn(1, tokens, 48, generator=torch.Generator().manual_seed(tokens)) + 0.5
    with routing(RoutingPlan(pool, Phatgoose(k))):
        y = layer(u)
    # The reference takes one token at a time, and its time.
    assert error(y[0, -40:], route(u[0, -40:], layer.linear.weight, None, slow, k).y) <= 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [2, 7, 64])
@pytest.mark.parametrize("count", [1, 8, 40])
def test_every_way_agrees_with_the_reference(way: str, tokens: int, count: int) -> None:
    pool, slow = make_experts(count, 64, 32, seed=tokens, equal_rank=4 if way == "grouped" else None)
    layer, module = make_layer(64, 32), pool.modules[PATH]
    u = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(count))
    choice = Phatgoose(2).choose(module, u)
    assert isinstance(choice, Choice)
    y = layer.linear(u)
    WAYS[way](module, u, choice, y)
    assert error(y, route(u, layer.linear.weight, None, slow, 2).y) <= 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_only_chosen_experts_reach_the_output(way: str) -> None:
    pool, _ = make_experts(5, 32, 16, equal_rank=4)
    part = pool.experts[0].modules[PATH]
    for number, value in enumerate((torch.inf, torch.nan, 3e38)):
        broken = ExpertModule(torch.full_like(part.a, value), part.b, 1.0, part.gate)
        pool = pool.add(type(pool.experts[0])(f"{number:f>64}", f"broken{number}", "", {PATH: broken}))
    choice = Choice(torch.tensor([[0, 1], [3, 4], [1, 0]]), torch.full((3, 2), 0.5))
    y = torch.zeros(3, 16)
    WAYS[way](pool.modules[PATH], torch.randn(3, 32), choice, y)
    assert y.isfinite().all()


def test_an_expert_that_came_later_reaches_no_older_request() -> None:
    pool, _ = make_experts(5, 32, 16, equal_rank=4)
    u = torch.randn(9, 32)
    old = pool.modules[PATH]
    choice = Phatgoose(2).choose(old, u)
    assert isinstance(choice, Choice)
    before = {}
    for name, way in WAYS.items():
        before[name] = torch.zeros(9, 16)
        way(old, u, choice, before[name])
    part = pool.experts[0].modules[PATH]
    broken = ExpertModule(torch.full_like(part.a, torch.nan), part.b, 1.0, part.gate)
    pool.add(type(pool.experts[0])("f" * 64, "broken", "", {PATH: broken}))
    for name, way in WAYS.items():
        after = torch.zeros(9, 16)
        way(old, u, choice, after)
        assert torch.equal(after, before[name])


@pytest.mark.parametrize("tokens", [2, 30])
@pytest.mark.parametrize("rank", [3, 64])
def test_a_generation_is_offered_what_it_was_when_others_grow(tokens: int, rank: int) -> None:
    pool, _ = make_experts(20, 32, 16, equal_rank=4)
    u = torch.randn(tokens, 32)
    before = set(offered(pool.modules[PATH], u))
    assert {"concatenated", "grouped"} <= before
    grown = pool.add(Expert("e" * 64, "new", "", {PATH: replace(
        pool.experts[0].modules[PATH], a=torch.randn(rank, 32), b=torch.randn(16, rank)
    )}))  # fmt: skip
    assert set(offered(grown.modules[PATH], u)) != before
    # A view that nobody made before the pool grew.
    for module in (pool.modules[PATH], replace(pool.modules[PATH])):
        assert set(offered(module, u)) == before


def test_ways_are_offered_only_where_they_hold() -> None:
    mixed, _ = make_experts(9, 32, 16)
    equal, _ = make_experts(9, 32, 16, equal_rank=4)
    u = torch.randn(64, 32)
    assert set(offered(mixed.modules[PATH], u)) == {"sorted", "concatenated"}
    assert set(offered(equal.modules[PATH], u)) == {"sorted", "concatenated", "grouped"}
    assert "one by one" in offered(mixed.modules[PATH], u[:2])
    # Places of a removed expert are still in the pages, where a plain product would meet them.
    assert "concatenated" not in offered(mixed.remove(mixed.experts[0].digest).modules[PATH], u)
    assert "concatenated" not in offered(make_experts(200, 32, 16)[0].modules[PATH], u)


def test_a_kind_of_work_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make_experts(9, 32, 16)
    module, u, calls = pool.modules[PATH], torch.randn(64, 32), []
    choice = Phatgoose(2).choose(module, u)
    assert isinstance(choice, Choice)

    def counted(module: object, u: object, choice: object, y: Tensor) -> None:
        calls.append(y)

    monkeypatch.setattr(experts_cpu, "add_sorted", counted)
    monkeypatch.setattr(experts_cpu, "add_concatenated", counted)
    monkeypatch.setattr("router.layer.dispatch.autotuner", Autotuner())
    y = torch.zeros(64, 16)
    dispatch(module, u, choice, y)
    assert len(calls) > 2
    assert [call for call in calls if call is y] == calls[-1:]
    calls.clear()
    dispatch(module, u, choice, y)
    assert len(calls) == 1


def test_everybody_at_once_keeps_its_digits() -> None:
    pool, slow = make_experts(200, 32, 16)
    u, y = torch.randn(5, 32), torch.zeros(5, 16)
    everybody = CommonChoice(list(range(200)), [1 / 200] * 200)
    add_experts(pool.modules[PATH], u, everybody, y)
    mean = sum((e.scaling * e.b.double() @ e.a.double() for e in slow), torch.zeros(16, 32, dtype=torch.float64)) / 200
    assert error(y, u.double() @ mean.T) < 1e-6


def test_any_layout_of_the_input_will_do() -> None:
    pool, _ = make_experts(9, 32, 16)
    layer, u = make_layer(32, 16), torch.randn(32, 5, 3).permute(2, 1, 0)
    with routing(RoutingPlan(pool, Phatgoose(2))):
        torch.testing.assert_close(layer(u), layer(u.contiguous()))
        torch.testing.assert_close(layer(u[0, :1]), layer(u[:1, :1].contiguous())[0])


def test_no_pool_at_all_is_no_work() -> None:
    layer, u = make_layer(32, 16), torch.randn(3, 32)
    with routing(RoutingPlan(ExpertPool(), Phatgoose(2))):
        assert torch.equal(layer(u), layer.linear(u))


def test_what_was_quickest_is_taken_only_where_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, slow = make_experts(9, 32, 16)
    autotuner = Autotuner()
    monkeypatch.setattr(autotuner, "settle", lambda kind, ways, _: autotuner.known.setdefault(kind, list(ways)[-1]))
    monkeypatch.setattr("router.layer.dispatch.autotuner", autotuner)
    # The same magnitudes, but nobody may be computed with who was removed.
    for seen, experts in ((pool, slow), (pool.remove(pool.experts[0].digest), slow[1:])):
        module, u, y = seen.modules[PATH], torch.randn(64, 32), torch.zeros(64, 16)
        choice = Phatgoose(2).choose(module, u)
        assert isinstance(choice, Choice)
        dispatch(module, u, choice, y)
        assert error(y, route(u, torch.zeros(16, 32), None, experts, 2).y) <= 1e-6
    assert len(autotuner.known) == 2


@pytest.mark.parametrize("choice", [
    CommonChoice([1, 2], [0.5, 0.5]), Choice(torch.tensor([[1, 2]] * 3), torch.full((3, 2), 0.5)),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_layout_of_the_output_will_do(choice: Choice | CommonChoice, dtype: torch.dtype) -> None:
    pool, _ = make_experts(4, 32, 16)
    module, u = in_dtype(pool, dtype).modules[PATH], torch.randn(3, 32).to(dtype)
    wanted = add_experts(module, u, choice, torch.zeros(3, 16, dtype=dtype))
    assert torch.equal(add_experts(module, u, choice, torch.zeros(16, 3, dtype=dtype).T), wanted)
