"""One row of tokens, shared by requests that are routed by several plans."""

import pytest
import torch
from torch import Tensor

from protocol.errors import Code, Refused
from router.layer.routed_linear import RoutedLinear, RoutingPlan, SegmentPlan, routing
from router.methods.base_only import BaseOnly
from router.methods.phatgoose import Phatgoose
from router.methods.single_expert import SingleExpert
from tests.router.experts import make_experts, make_layer

WIDTH, OUT = 32, 16


def apart(layer: RoutedLinear, u: Tensor, parts: list[tuple[RoutingPlan, int]]) -> Tensor:
    """Route each part alone."""
    found = []
    for (plan, _), mine in zip(parts, torch.split(u, [tokens for _, tokens in parts], 1), strict=True):
        with routing(plan):
            found.append(layer(mine))
    return torch.cat(found, 1)


def test_each_request_is_routed_by_its_own_plan_wherever_its_tokens_stand() -> None:
    pool, _ = make_experts(6, WIDTH, OUT)
    layer, u = make_layer(WIDTH, OUT), torch.randn(1, 13, WIDTH, generator=torch.Generator().manual_seed(0))
    common, one, none = (
        RoutingPlan(pool, method) for method in (Phatgoose(2), SingleExpert(pool.experts[3]), BaseOnly())
    )
    # The first stands together twice, then comes once more after others.
    parts = [(common, 2), (common, 1), (one, 4), (none, 1), (common, 1), (one, 1), (RoutingPlan(pool, Phatgoose(1)), 3)]
    with routing(SegmentPlan(parts)):
        y = layer(u)
        again = layer(u)
    torch.testing.assert_close(y, apart(layer, u, parts))
    assert torch.equal(y, again)
    assert torch.equal(y[:, 7], layer(u)[:, 7])  # bitwise the base


def test_modules_that_read_one_tensor_are_given_one_piece() -> None:
    pool, _ = make_experts(3, WIDTH, OUT)
    plans = [RoutingPlan(pool, Phatgoose(k)) for k in (1, 2)]
    together = SegmentPlan([(plans[0], 1), (plans[1], 2), (plans[0], 1)])
    u = torch.randn(1, 4, WIDTH)
    first, second = together.split("q", u), together.split("k", u)
    assert [each.shape for each in first] == [(1, 2, WIDTH), (1, 2, WIDTH)]
    assert all(mine is other for mine, other in zip(first, second, strict=True))
    assert torch.equal(first[0], u[:, [0, 3]])
    assert together.split("o", u.clone())[0] is not first[0]


def test_a_row_of_which_tokens_are_missing_is_refused() -> None:
    pool, _ = make_experts(3, WIDTH, OUT)
    layer = make_layer(WIDTH, OUT)
    plan = SegmentPlan([(RoutingPlan(pool, Phatgoose(1)), 2), (RoutingPlan(pool, BaseOnly()), 2)])
    u = torch.randn(1, 4, WIDTH)
    with routing(plan):
        torch.testing.assert_close(layer(u[0]), layer(u)[0])  # as feed-forwards flatten it
        with pytest.raises(Refused) as refused:
            layer(u[:, :3])
    assert refused.value.code is Code.REQUEST_INVALID
