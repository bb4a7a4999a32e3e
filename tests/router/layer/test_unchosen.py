"""Nobody is computed with at weight zero: zero times what overflowed would not be zero."""

import pytest
import torch

from router.layer import experts_cpu, experts_gpu
from router.layer.choice import Choice, CommonChoice
from router.layer.dispatch import add_experts
from router.layer.routed_linear import RoutingPlan, routing
from router.methods.nnls_request import ByRequest
from router.methods.phatgoose import Phatgoose
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.gate import standardise
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, make_layer

D, OUT, RANK = 32, 16, 8
WAYS = {
    "sorted": experts_cpu.add_sorted,
    "one by one": experts_cpu.add_one_by_one,
    "concatenated": experts_cpu.add_concatenated,
    "grouped": experts_cpu.add_grouped,
    "gathered on a GPU": experts_gpu.add_gathered,
    "grouped on a GPU": experts_gpu.add_grouped,
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def pool_with_overflow(dtype: torch.dtype) -> ExpertPool:
    """Grow a pool of four whose first expert makes infinity of any token of ones."""
    generator = torch.Generator().manual_seed(0)
    pool = ExpertPool()
    for number in range(4):
        a, b, gate = (torch.randn(*shape, generator=generator) for shape in ((RANK, D), (OUT, RANK), (D,)))
        a = torch.full_like(a, torch.finfo(dtype).max) if number == 0 else a
        part = ExpertModule(a.to(dtype), b.to(dtype), 0.5, standardise(gate))
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", {PATH: part}))
    return pool


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_whoever_fills_a_row_up_adds_nothing(way: str, dtype: torch.dtype) -> None:
    module, u = pool_with_overflow(dtype).modules[PATH], torch.ones(4, D, dtype=dtype)
    wanted, found = (torch.zeros(4, OUT, dtype=dtype) for _ in range(2))
    weights = torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.25, 0.75], [0.0, 0.0]])
    WAYS[way](module, u, Choice(torch.tensor([[1, 0], [2, 0], [3, 1], [0, 0]]), weights), found)
    # The same with somebody harmless for a filler.
    WAYS[way](module, u, Choice(torch.tensor([[1, 3], [2, 3], [3, 1], [2, 1]]), weights), wanted)
    assert wanted.isfinite().all()
    assert torch.equal(found, wanted)
    assert not found[3].any()


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_tokens_alike_are_spared_whoever_has_no_weight(tokens: int, dtype: torch.dtype) -> None:
    module, u = pool_with_overflow(dtype).modules[PATH], torch.ones(tokens, D, dtype=dtype)
    found = add_experts(module, u, CommonChoice([2, 0], [1.0, 0.0]), torch.zeros(tokens, OUT, dtype=dtype))
    wanted = add_experts(module, u, CommonChoice([2], [1.0]), torch.zeros(tokens, OUT, dtype=dtype))
    assert wanted.any()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_requests_of_a_batch_are_spared_each_others_fillers(tokens: int, dtype: torch.dtype) -> None:
    pool, layer = pool_with_overflow(dtype), make_layer(D, OUT).to(dtype)
    first, second, third = (f"{number:064x}" for number in (1, 2, 3))
    # Nobody answers the last row here, so its place is filled by whoever stands first: the one that overflows.
    rows = [{first: 0.5, second: 0.5}, {third: 1.0}, {"f" * 64: 1.0}]
    u = torch.ones(3, tokens, D, dtype=dtype)
    with routing(RoutingPlan(pool, ByRequest(rows))):
        y = layer(u)
    assert y.isfinite().all()
    assert torch.equal(y[2], layer.linear(u)[2])
    assert not torch.equal(y[1], layer.linear(u)[1])


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_temperature_near_zero_leaves_the_best_alone(tokens: int, dtype: torch.dtype) -> None:
    pool, layer = pool_with_overflow(dtype), make_layer(D, OUT).to(dtype)
    # The second best is the one that overflows, at a weight of which float32 keeps nothing.
    best = pool.experts[1].modules[PATH].gate
    u = (best + 0.1 * pool.experts[0].modules[PATH].gate).repeat(tokens, 1).to(dtype)
    with routing(RoutingPlan(pool, Phatgoose(4, 1e-4))):
        y = layer(u)
    with routing(RoutingPlan(pool, Phatgoose(1))):
        assert torch.equal(layer(u), y)
    assert y.isfinite().all()
