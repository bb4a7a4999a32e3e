"""Figures that were measured on the paper's own code and on what was built after it, found again here.

Sources: the published code of arXiv 2402.05859 (LayerNorm with eps 1e-5, softmax over all experts before the
top 2), and measurements of routing in bfloat16 at d = 2048.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from router.layer.choice import Choice
from router.layer.topk import choose_topk
from router.pool.gate import standardise
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, pool_of

D = 2048


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("variance", "length"), [(1e-3, 0.995), (1e-4, 0.953), (1e-5, 0.707), (1e-6, 0.302)])
def test_a_gate_of_small_variance_is_shrunk_by_eps(variance: float, length: float) -> None:
    gate = standardise(torch.randn(D, dtype=torch.float64))
    shrunk = standardise(gate * variance**0.5)
    assert (shrunk.norm() / gate.norm()).item() == pytest.approx(length, abs=6e-4)
    # As LayerNorm of the published code, vector by vector.
    theirs = functional.layer_norm(gate * variance**0.5, (D,), eps=1e-5)
    torch.testing.assert_close(shrunk, theirs, atol=0, rtol=0)


def chosen(pool: ExpertPool, u: Tensor) -> Choice:
    (choice,) = choose_topk(pool.modules[PATH].group, u, 2)
    assert isinstance(choice, Choice)
    return choice


def published(u: Tensor, gates: Tensor, a: Tensor, b: Tensor, k: int) -> Tensor:
    """Route as the published code does: softmax over all, top k, divide by the sum plus 1e-6.

    Args:
        u: [t, d].
        gates: [n, d], standardised.
        a: [n, r, d].
        b: [n, o, r].
        k: Experts a token.

    Returns:
        [t, o], what is added to the base.
    """
    shares = torch.softmax(standardise(u) @ gates.T * u.shape[1] ** -0.5, dim=1)
    best, rows = shares.topk(k, dim=1)
    best = best / (best.sum(1, keepdim=True) + 1e-6)
    hidden = torch.einsum("tkrd,td->tkr", a[rows], u)
    return torch.einsum("tk,tkor,tkr->to", best, b[rows], hidden)


@pytest.mark.parametrize("count", [8, 36, 166])
def test_softmax_over_all_differs_from_ours_by_its_1e_6_alone(count: int) -> None:
    d, r, o, t = 256, 4, 32, 64
    pool = pool_of(torch.randn(count, d))
    gates = pool.modules[PATH].gates
    a, b, u = torch.randn(count, r, d) / d**0.5, torch.randn(count, o, r), torch.randn(t, d)
    choice = chosen(pool, u)
    hidden = torch.einsum("tkrd,td->tkr", a[choice.experts], u)
    ours = torch.einsum("tk,tkor,tkr->to", choice.weights, b[choice.experts], hidden)
    difference = (ours - published(u, gates, a, b, 2)).abs().max() / ours.abs().max()
    # Measured at N = 166: 2.3e-5; the 1e-6 weighs the more, the thinner the softmax over all is spread.
    assert difference < 1e-4
    assert count < 166 or difference > 1e-6


@pytest.mark.parametrize(("count", "share"), [(8, 0.005), (36, 0.010), (166, 0.022), (500, 0.028)])
def test_bfloat16_routing_would_choose_otherwise_and_ours_does_not(count: int, share: float) -> None:
    gates = torch.randn(count, D)
    u = torch.randn(2000, D).bfloat16()
    exact = (standardise(u.double()) @ standardise(gates.double()).T).topk(2, dim=1).indices.sort(1).values
    # The published code casts the softmax back to bfloat16 before it takes the best two.
    narrow = standardise(u) @ standardise(gates).bfloat16().T * D**-0.5
    shares = torch.softmax(narrow.float(), dim=1).bfloat16()
    changed = (shares.topk(2, dim=1).indices.sort(1).values != exact).any(1).double().mean()
    assert share / 4 < changed < share * 2
    same = (chosen(pool_of(gates), u).experts.sort(1).values == exact).all(1).double().mean()
    assert same >= 0.999
