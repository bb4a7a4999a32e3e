"""Plain PyTorch's ways for a GPU, on a CPU: every step of them runs on either."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from router.layer import experts_gpu, topk_gpu
from router.layer.autotune import Autotuner
from router.layer.choice import Choice
from router.layer.dispatch import dispatch
from router.layer.kernels import available
from router.layer.routed_linear import RoutingPlan, routing
from router.methods.context import MethodContext
from router.methods.phatgoose import Phatgoose
from router.methods.registry import resolve
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.gate import standardise
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, choice_of, error, in_dtype, make_experts, make_layer, mixed_kinds
from tests.router.on_device import NothingIsAsked, on_device
from tests.router.reference import route

WAYS = {"gathered": experts_gpu.add_gathered, "grouped": experts_gpu.add_grouped}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "kernels", lambda dtype: None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("tokens", "count", "k"), [(1, 1, 2), (2, 3, 5), (7, 200, 2), (70, 40, 9)])
def test_plain_ways_agree_with_the_reference(
    way: str, tokens: int, count: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ranks 1 to 7, every third expert absent, several pieces of scores and of gathered factors.
    monkeypatch.setattr(topk_gpu, "_SCORES", 1000)
    monkeypatch.setattr(experts_gpu, "_GATHERED", 20000)
    pool, slow = make_experts(count, 48, 40, absent=3 if count > 3 else 0, seed=count)
    pool, slow = (pool.remove(pool.experts[1].digest), slow[1:]) if count > 3 else (pool, slow)
    module, layer = pool.modules[PATH], make_layer(48, 40)
    u = torch.randn(tokens, 48, generator=torch.Generator().manual_seed(tokens)) + 0.5
    choice, y = choice_of(module, u, k), layer.linear(u)
    exact = route(u, layer.linear.weight, None, slow, k)
    for row in range(tokens):
        if exact.gaps[row] > 1e-5:
            assert [module.rows.index(at) for at in choice.experts[row].tolist()] == exact.experts[row]
    WAYS[way](module, u, choice, y)
    assert error(y, exact.y) <= 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_half_precision_with_ranks_that_torch_would_refuse(way: str) -> None:
    pool, slow = make_experts(9, 48, 40)
    pool = in_dtype(pool, torch.bfloat16)
    module, u = pool.modules[PATH], torch.randn(17, 48).bfloat16()
    y = torch.zeros(17, 40, dtype=torch.bfloat16)
    WAYS[way](module, u, choice_of(module, u, 2), y)
    assert error(y, route(u, torch.zeros(40, 48), None, slow, 2).y) <= 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("way", WAYS)
def test_only_chosen_experts_reach_the_output(way: str) -> None:
    pool, _ = make_experts(5, 32, 16, equal_rank=4)
    part = pool.experts[0].modules[PATH]
    for number, value in enumerate((torch.inf, torch.nan, 3e38)):
        broken = ExpertModule(torch.full_like(part.a, value), torch.full_like(part.b, value), 1.0, part.gate)
        pool = pool.add(Expert(f"{number:f>64}", f"broken{number}", "", {PATH: broken}))
    choice = Choice(torch.tensor([[0, 1], [3, 4], [6, 0]]), torch.full((3, 2), 0.5))
    y = torch.zeros(3, 16)
    WAYS[way](pool.modules[PATH], torch.randn(3, 32), choice, y)
    assert y[:2].isfinite().all()
    assert not y[2].isfinite().any()


def test_ties_go_to_whoever_came_first() -> None:
    gate = torch.randn(64, generator=torch.Generator().manual_seed(0))
    pool = ExpertPool()
    for number, each in enumerate([-gate, *[gate] * 300, torch.full((64,), 7.0)]):
        part = ExpertModule(torch.ones(1, 64), torch.ones(4, 1), 1.0, standardise(each.double()).float())
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", {PATH: part}))
    module = pool.modules[PATH]
    assert choice_of(module, gate.repeat(9, 1), 3).experts.tolist() == [[1, 2, 3]] * 9
    # Zero scores, of either sign, come before negative ones.
    assert choice_of(module, -gate.repeat(9, 1), 2).experts.tolist() == [[0, 301]] * 9


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_activation_gives_no_finite_answer(value: float) -> None:
    pool, _ = make_experts(5, 32, 16)
    u = torch.randn(3, 32)
    u[0, 3] = value
    choice = choice_of(pool.modules[PATH], u, 2)
    assert choice.weights[0].isnan().all()
    assert choice.weights[1:].isfinite().all()


def test_a_module_that_nobody_touches_has_no_choice() -> None:
    part = ExpertModule(torch.ones(1, 8), torch.ones(4, 1), 1.0, torch.ones(8))
    pool = ExpertPool().add(Expert("0" * 64, "e", "", {"a.q": part, "a.v": part}))
    group = pool.modules["a.q"].group
    found = topk_gpu.choose_on_gpu(group, torch.randn(3, 8), 2)
    assert [choice is None for choice in found] == [path == "a.k" for path in group.store.paths]


@pytest.mark.parametrize("missing", ["shutil.which", "router.layer.kernels.available.find_spec"])
def test_without_triton_or_a_compiler_there_are_no_kernels(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(missing, lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    find: Callable[[torch.dtype], object] = available.kernels.__wrapped__
    assert find(torch.float32) is None
    monkeypatch.undo()
    assert find(torch.float64) is None


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_goes_the_way_of_a_gpu(tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, slow = make_experts(9, 48, 40, absent=4)
    pool = in_dtype(pool, dtype)
    layer, u = make_layer(48, 40).to(dtype), torch.randn(1, tokens, 48).to(dtype)
    timed = []

    def time(call: Callable[[], None], u: Tensor) -> float:
        call()
        timed.append(u)
        return 1.0

    monkeypatch.setattr("router.layer.autotune._time", time)
    monkeypatch.setattr("router.layer.dispatch.autotuner", Autotuner())
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    with routing(RoutingPlan(pool, Phatgoose(2))):
        y = layer(on_device(u))
        assert len(timed) == (6 if dtype == torch.float32 else 12)
        assert torch.equal(layer(on_device(u)), y)
        assert len(timed) in (6, 12)
    exact = route(u[0], layer.linear.weight, None, slow, 2).y
    assert error(y[0].as_subclass(Tensor), exact) <= (1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("tokens", [1, 7])
def test_experts_of_every_kind_go_the_way_of_a_gpu(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, u, pool = make_layer(24, 20), torch.randn(tokens, 24), mixed_kinds(24, 20)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    with routing(RoutingPlan(pool, Phatgoose(3))):
        torch.testing.assert_close(layer(on_device(u)).as_subclass(Tensor), layer(u))


METHODS = (
    "arrow",
    "genknowsub:e1",
    "merged",
    "expert:e2",
    "parameter-average",
    "phatgoose",
    "spectr",
    "uniform",
    "base",
)


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_asks_a_warm_device_nothing(method: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make_experts(9, 48, 40, absent=4)
    layer, u = make_layer(48, 40), torch.randn(tokens, 48)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    (plan,) = resolve(method, MethodContext(pool, ["x"], 2, 0.5))
    with routing(plan):
        near, _ = layer(u), layer(on_device(u))  # which works out what is worked out once
        with NothingIsAsked():  # type: ignore[no-untyped-call]
            y = layer(on_device(u))
    torch.testing.assert_close(y.as_subclass(Tensor), near)


def test_nothing_is_timed_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make_experts(9, 48, 40)
    module, u = pool.modules[PATH], on_device(torch.randn(3, 48))
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    monkeypatch.setattr("router.layer.autotune._time", lambda call, u: pytest.fail("timed"))
    autotuner = Autotuner()
    monkeypatch.setattr("router.layer.dispatch.autotuner", autotuner)
    dispatch(module, u, choice_of(module, u, 2), torch.zeros(3, 40))
    assert not autotuner.known
