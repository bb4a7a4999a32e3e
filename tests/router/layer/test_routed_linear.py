"""The routed layer against the float64 reference."""

import pytest
import torch
from torch import Tensor, nn

from router.layer.choice import Choice
from router.layer.routed_linear import RoutedLinear, RoutingPlan, routing
from router.methods.base_only import BaseOnly
from router.methods.merged import Merged
from router.methods.phatgoose import Phatgoose
from router.methods.single_expert import SingleExpert
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, make_experts, make_layer
from tests.router.reference import route


@pytest.mark.parametrize("count", [1, 2, 3, 8, 36, 200])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_agrees_with_the_reference(count: int, k: int, bias: bool) -> None:  # noqa: FBT001 - a parameter of the test
    d, o, t = 64, 48, 33
    pool, slow = make_experts(count, d, o, absent=3 if count > 3 else 0, seed=count)
    layer = make_layer(d, o, bias=bias)
    u = torch.randn(3, 11, d, generator=torch.Generator().manual_seed(k))
    with routing(RoutingPlan(pool, Phatgoose(k))):
        y = layer(u)
    expected = route(u.reshape(t, d), layer.linear.weight, layer.linear.bias, slow, k)
    error = (y.reshape(t, o).double() - expected.y).abs().max() / expected.y.abs().max()
    assert error <= 1e-6
    choice = Phatgoose(k).choose(pool.modules[PATH], u.reshape(t, d))
    assert isinstance(choice, Choice)
    for row, (chosen, gap) in enumerate(zip(expected.experts, expected.gaps, strict=True)):
        if gap > 1e-5:
            assert choice.experts[row].tolist() == chosen


def test_no_expert_is_bitwise_the_base() -> None:
    layer = make_layer(32, 16)
    u = torch.randn(5, 7, 32)
    plain = layer.linear(u)
    assert torch.equal(layer(u), plain)
    with routing(RoutingPlan(ExpertPool(), Phatgoose(2))):
        assert torch.equal(layer(u), plain)
    pool, _ = make_experts(4, 32, 16)
    with routing(RoutingPlan(pool, BaseOnly())):
        assert torch.equal(layer(u), plain)


def test_one_expert_by_name_is_that_expert() -> None:
    pool, slow = make_experts(5, 32, 16)
    layer, u = make_layer(32, 16), torch.randn(9, 32)
    with routing(RoutingPlan(pool, SingleExpert(pool.find("c/e3")))):
        y = layer(u)
    expected = layer.linear(u) + slow[3].scaling * (u @ slow[3].a.T @ slow[3].b.T)
    torch.testing.assert_close(y, expected)


def test_an_expert_that_leaves_the_module_alone_is_bitwise_the_base() -> None:
    pool, _ = make_experts(5, 32, 16, absent=3)
    layer, u = make_layer(32, 16), torch.randn(9, 32)
    with routing(RoutingPlan(pool, SingleExpert(pool.find("e3")))):
        assert torch.equal(layer(u), layer.linear(u))


def test_merged_is_the_mean_of_outer_products() -> None:
    pool, slow = make_experts(9, 32, 16, absent=4)
    layer, u = make_layer(32, 16), torch.randn(9, 32)
    with routing(RoutingPlan(pool, Merged())):
        y = layer(u)
    mean = sum((e.scaling * e.b.double() @ e.a.double() for e in slow), torch.zeros(16, 32, dtype=torch.float64))
    expected = u.double() @ (layer.linear.weight.double() + mean / len(slow)).T
    assert (y.double() - expected).abs().max() / expected.abs().max() < 1e-6


@pytest.mark.parametrize("method", [Phatgoose(2), Phatgoose(6), Merged()])
@pytest.mark.parametrize("tokens", [1, 5])
def test_bfloat16_is_as_near_as_bfloat16_can_be(method: Phatgoose | Merged, tokens: int) -> None:
    pool, _ = make_experts(9, 64, 48)
    layer = make_layer(64, 48).bfloat16()
    u = torch.randn(tokens, 64).bfloat16()
    halved = ExpertPool()
    for expert in pool.experts:
        part = expert.modules[PATH]
        part = ExpertModule(part.a.bfloat16(), part.b.bfloat16(), part.scaling, part.gate)
        halved = halved.add(Expert(expert.digest, expert.name, "", {PATH: part}))
    with routing(RoutingPlan(halved, method)):
        y = layer(u)
    with routing(RoutingPlan(pool, method)):
        exact = layer.float()(u.float())
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).abs().max() / exact.abs().max() < 2e-2


def test_bfloat16_chooses_as_float64_does() -> None:
    d, o, t = 256, 64, 400
    pool, slow = make_experts(36, d, o)
    u = torch.randn(t, d, generator=torch.Generator().manual_seed(3)).bfloat16()
    expected = route(u.float(), torch.zeros(o, d), None, slow, k=2)
    choice = Phatgoose(2).choose(pool.modules[PATH], u)
    assert isinstance(choice, Choice)
    same = sum(sorted(choice.experts[row].tolist()) == sorted(expected.experts[row]) for row in range(t))
    assert same / t >= 0.999


def test_a_hooked_or_patched_base_is_called_as_it_was_hooked() -> None:
    linear = nn.Linear(6, 6)
    layer = RoutedLinear("m", linear)
    u = torch.randn(2, 6)
    plain = layer(u)
    torch.testing.assert_close(plain, linear(u), atol=0, rtol=0)
    seen: list[Tensor] = []
    handle = linear.register_forward_hook(lambda _module, _inputs, y: seen.append(y))
    layer(u)
    handle.remove()
    assert len(seen) == 1
    linear.forward = lambda input: input * 0  # type: ignore[method-assign]  # noqa: A006 - its parameter is so called
    assert not layer(u).any()
