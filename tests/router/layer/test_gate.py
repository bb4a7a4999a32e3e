"""The gate's formulas, worked by hand, and a gate that we train."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from protocol.documents import Pool
from protocol.signing import Identity
from router.base.loading import load_base
from router.layer.topk import choose_topk
from router.pool.expert_module import ExpertModule
from router.pool.gate import standardise
from router.training.gated_linear import GatedExpert, attach_gates, detach_gates
from tests import factories
from tests.router import reference
from tests.router.experts import PATH, as_lists, pool_of


def test_standardise_by_hand() -> None:
    # [1, 2, 3, 6]: mean 3, biased variance (4 + 1 + 0 + 9) / 4 = 3.5
    x = torch.tensor([1.0, 2.0, 3.0, 6.0])
    expected = (x - 3.0) / math.sqrt(3.5 + 1e-5)
    torch.testing.assert_close(standardise(x), expected)


def test_a_constant_vector_standardises_to_zero() -> None:
    assert standardise(torch.full((8,), 3.0)).abs().max() == 0


def gated(linear: nn.Linear, a: torch.Tensor, b: torch.Tensor, scaling: float) -> GatedExpert:
    return GatedExpert(linear, ExpertModule(a, b, scaling, torch.zeros(linear.in_features)))


def test_gated_forward_by_hand() -> None:
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    layer = gated(linear, torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0], [0.0]]), scaling=0.5)
    u = torch.tensor([[3.0, 1.0]])
    # Gate 0: sigmoid 1/2. B A u = [8, 0], times s = 0.5 times 1/2 gives [2, 0].
    torch.testing.assert_close(layer(u), torch.tensor([[5.0, 1.0]]))
    layer.gate.data = torch.tensor([0.0, math.log(3.0)])
    # v . u = log 3: sigmoid 3/4, so [8, 0] * 0.5 * 0.75 = [3, 0].
    torch.testing.assert_close(layer(u), torch.tensor([[6.0, 1.0]]))


def test_routing_by_hand() -> None:
    # Gates along +x, -x and +y of a standardised plane: for u along +x, scores are d, -d and 0.
    pool = pool_of(torch.tensor([[1.0, -1, 0, 0], [-1.0, 1, 0, 0], [0.0, 0, 1, -1]]))
    experts, weights = as_lists(choose_topk(pool.modules[PATH].group, torch.tensor([[1.0, -1.0, 0.0, 0.0]]), 2)[0])
    assert experts == [[0, 2]]
    # Softmax of 4/2 and 0/2.
    assert weights[0][0] == pytest.approx(math.exp(2.0) / (math.exp(2.0) + 1.0), abs=1e-4)


def test_a_norm_cannot_buy_tokens() -> None:
    gates, u = torch.randn(4, 64), torch.randn(50, 64)
    loud = gates.clone()
    loud[2] *= 1e6
    plain, shouted = (as_lists(choose_topk(pool_of(each).modules[PATH].group, u, 2)[0]) for each in (gates, loud))
    assert plain[0] == shouted[0]


@pytest.mark.parametrize("kind", ["t5_base", "llama_base"])
def test_only_gates_are_trainable_and_they_start_half_open(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, identity: Identity
) -> None:
    base: Path = request.getfixturevalue(kind)
    pool: Pool = factories.make_pool(base, identity)
    bundle = factories.make_bundle(tmp_path / "b", pool, identity)
    model = load_base(str(base), device="cpu").model
    plain = {path: model.get_submodule(path) for path in bundle.spec.modules}
    gated = attach_gates(model, bundle.folder, bundle.spec.modules)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {f"{p}.gate" for p in gated}
    layer = next(iter(gated.values()))
    u = torch.randn(3, layer.in_features)
    expected = layer.linear(u) + 0.5 * layer.part.scaling * (u @ layer.part.a.T @ layer.part.b.T)
    torch.testing.assert_close(layer(u), expected)
    detach_gates(model, gated)
    assert all(model.get_submodule(path) is module for path, module in plain.items())


def test_a_gate_that_we_train_opens_for_its_task_and_routes_by_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    d, o, r, t = 16, 8, 2, 256
    linear = nn.Linear(d, o, bias=False)
    linear.weight.data = torch.randn(o, d, generator=generator) / 4
    direction = torch.randn(2, d, generator=generator) * 2
    # Each of two experts helps on inputs near its own direction and harms elsewhere.
    experts = []
    for own in range(2):
        a, b = torch.randn(r, d, generator=generator) / 4, torch.randn(o, r, generator=generator)
        layer = gated(linear, a, b, scaling=1.0)
        near = direction[own] + torch.randn(t, d, generator=generator)
        far = direction[1 - own] + torch.randn(t, d, generator=generator)
        u = torch.cat([near, far])
        opened = torch.cat([torch.ones(t, 1), torch.zeros(t, 1)])
        target = (linear(u) + opened * (u @ a.T @ b.T)).detach()
        optimizer = torch.optim.AdamW([layer.gate], lr=5e-3)
        for _ in range(100):
            optimizer.zero_grad()
            (layer(u) - target).pow(2).mean().backward()
            optimizer.step()
        experts.append(reference.ReferenceExpert(a, b, 1.0, layer.gate.detach()))
        assert torch.sigmoid(near @ layer.gate).mean() > 0.8
        assert torch.sigmoid(far @ layer.gate).mean() < 0.5
    u = torch.cat([direction[z] + torch.randn(t, d, generator=generator) for z in range(2)])
    slow = reference.route(u, linear.weight.detach(), None, experts, k=1)
    fast, _ = as_lists(choose_topk(pool_of(expert.gate for expert in experts).modules[PATH].group, u, 1)[0])
    assert fast == slow.experts
    assert sum(fast[at] == [at // t] for at in range(2 * t)) > 0.9 * 2 * t
