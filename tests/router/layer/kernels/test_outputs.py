"""What the kernels add to a layer's output, against the float64 reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from router.layer import experts_gpu
from router.layer.choice import Choice
from router.layer.kernels import available, launch
from router.layer.routed_linear import RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.group_view import ModuleExperts
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, choice_of, error, in_dtype, make_experts, make_layer, mixed_kinds
from tests.router.on_device import NothingIsAsked, on_device
from tests.router.reference import ReferenceExpert, route

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's inf - inf
WAYS = {"rows": experts_gpu.add_rows, "tiles": experts_gpu.add_tiles}
Way = Callable[[ModuleExperts, Tensor, Choice, Tensor], None]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("tokens", "count", "k", "d", "o"), [(1, 1, 2, 48, 40), (2, 17, 2, 33, 150), (3, 5, 3, 48, 40), (5, 3, 1, 33, 20)]
)
def test_outputs_agree_with_the_reference(way: str, tokens: int, count: int, k: int, d: int, o: int) -> None:
    pool, slow = make_experts(count, d, o, absent=4 if count > 3 else 0, seed=count)
    module, layer = pool.modules[PATH], make_layer(d, o)
    u = torch.randn(tokens, d, generator=torch.Generator().manual_seed(tokens)) + 0.5
    choice = choice_of(module, u, k)
    assert choice.experts.shape == (tokens, min(k, len(module)))
    assert (choice.hidden is None) == (tokens > launch.FEW)
    y = layer.linear(u)
    WAYS[way](module, u, choice, y)
    assert error(y, route(u, layer.linear.weight, None, slow, k).y) <= 1e-6


def test_several_tiles_and_several_blocks_of_tokens() -> None:
    pool, slow = make_experts(9, 48, 40, absent=4)
    module, layer, u = pool.modules[PATH], make_layer(48, 40), torch.randn(130, 48)
    y = layer.linear(u)
    experts_gpu.add_tiles(module, u, choice_of(module, u, 2), y)
    assert error(y, route(u, layer.linear.weight, None, slow, 2).y) <= 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(way: str, dtype: torch.dtype) -> None:
    d, o, tokens = 48, 40, 5
    generator = torch.Generator().manual_seed(0)
    pool, slow = make_experts(9, d, o)
    pool = in_dtype(pool, dtype)
    u = (torch.randn(tokens, d, generator=generator) + 0.5).to(dtype)
    y = torch.zeros(tokens, o, dtype=dtype)
    module = pool.modules[PATH]
    WAYS[way](module, u, choice_of(module, u, 2), y)
    assert error(y, route(u, torch.zeros(o, d), None, slow, 2).y) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("way", WAYS)
def test_ranks_beyond_one_block(way: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pool, slow = ExpertPool(), []
    for number, rank in enumerate((1, 40, 16, 17)):
        gate, a, b = (torch.randn(*shape, generator=generator) for shape in ((24,), (rank, 24), (20, rank)))
        slow.append(ReferenceExpert(a, b, 0.5, gate))
        part = ExpertModule(a, b, 0.5, (gate - gate.mean()) / (gate.var(correction=0) + 1e-5).sqrt())
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", {PATH: part}))
    u, y = torch.randn(3, 24, generator=generator), torch.zeros(3, 20)
    module = pool.modules[PATH]
    WAYS[way](module, u, choice_of(module, u, 2), y)
    assert error(y, route(u, torch.zeros(20, 24), None, slow, 2).y) <= 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_only_chosen_experts_reach_the_output(way: str) -> None:
    pool, _ = make_experts(5, 32, 16)
    part = pool.experts[0].modules[PATH]
    for number, value in enumerate((torch.inf, torch.nan, 3e38)):
        broken = ExpertModule(torch.full_like(part.a, value), torch.full_like(part.b, value), 1.0, part.gate)
        pool = pool.add(Expert(f"{number:f>64}", f"broken{number}", "", {PATH: broken}))
    # The last token is given a broken one, in the same tile, and nobody besides.
    choice = Choice(torch.tensor([[0, 1], [3, 4], [6, -1]]), torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]))
    y = torch.zeros(3, 16)
    WAYS[way](pool.modules[PATH], torch.randn(3, 32), choice, y)
    assert y[:2].isfinite().all()
    assert not y[2].isfinite().any()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # which is what this is about
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whoever_fills_a_row_up_adds_nothing(way: str, dtype: torch.dtype) -> None:
    pool, _ = make_experts(5, 32, 16)
    part = pool.experts[0].modules[PATH]
    loud = ExpertModule(torch.full_like(part.a, torch.finfo(dtype).max), part.b, 1.0, part.gate)
    pool = in_dtype(pool.add(Expert("f" * 64, "loud", "", {PATH: loud})), dtype)
    choice = Choice(torch.tensor([[0, 5], [5, 4], [5, 5]]), torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]))
    y = torch.zeros(3, 16, dtype=dtype)
    WAYS[way](pool.modules[PATH], torch.ones(3, 32, dtype=dtype), choice, y)
    assert y[:2].isfinite().all()
    assert y[:2].any(dim=1).all()
    assert not y[2].any()


@pytest.mark.parametrize("way", WAYS)
def test_the_same_work_gives_the_same_bits(way: str) -> None:
    pool, _ = make_experts(7, 32, 16)
    module, u = pool.modules[PATH], torch.randn(7, 32)
    choice = choice_of(module, u, 2)._replace(hidden=None)
    found = []
    for group in (module, pool.add(Expert("f" * 64, "new", "", pool.experts[0].modules)).modules[PATH]):
        y = torch.zeros(7, 16)
        WAYS[way](group, u, choice, y)
        found.append(y)
    assert torch.equal(*found)


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_layer_goes_the_way_of_a_gpu(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make_experts(5, 48, 40)
    layer, u = make_layer(48, 40), torch.randn(1, tokens, 48)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    with routing(RoutingPlan(pool, Phatgoose(2, temperature=2.0))):
        y, near = layer(on_device(u)).as_subclass(Tensor), layer(u)
    torch.testing.assert_close(y, near)


@pytest.mark.parametrize(("tokens", "bottleneck"), [(1, "none"), (5, "none"), (2, "some")])
def test_experts_of_every_kind(tokens: int, bottleneck: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, layer, u = mixed_kinds(24, 20, bottleneck=bottleneck == "some"), make_layer(24, 20), torch.randn(tokens, 24)
    offered = experts_gpu.offered(pool.modules[PATH], u)
    assert ("rows" in offered) == (bottleneck == "none")
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    with routing(RoutingPlan(pool, Phatgoose(3))):
        torch.testing.assert_close(layer(on_device(u)).as_subclass(Tensor), layer(u))


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("kernels", ["kernels", "plain"])
def test_a_warm_path_asks_the_device_nothing(tokens: int, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make_experts(9, 32, 16, absent=3, equal_rank=4)
    pool = pool.remove(pool.experts[1].digest)
    module, u, y = pool.modules[PATH], torch.randn(tokens, 32), torch.zeros(tokens, 16)
    if kernels == "plain":
        monkeypatch.setattr(available, "kernels", lambda _: None)
    ways: list[Way] = (
        [experts_gpu.add_rows, experts_gpu.add_tiles]
        if kernels == "kernels"
        else [experts_gpu.add_gathered, experts_gpu.add_grouped]
    )
    choice_of(module, u, 2)  # the first request of a generation brings the table up to date
    with NothingIsAsked():  # type: ignore[no-untyped-call]
        choice = choice_of(module, u, 2)
        for way in ways:
            way(module, u, choice, y)


def test_the_watch_can_find_something() -> None:
    with NothingIsAsked(), pytest.raises(AssertionError, match="waits"):  # type: ignore[no-untyped-call]
        torch.ones(1).item()
