"""Learning biases and temperatures: the routed layer's own answers, gradients that finite differences find, and use."""

from pathlib import Path

import numpy as np
import pytest
import torch

from protocol.bundle import Bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from router.base.loading import Base
from router.layer.routed_linear import RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.model.routed_model import RoutedModel
from router.pool.calibration import MAX_BIAS, MAX_LOG_TEMPERATURE, Calibration
from router.pool.pool import ExpertPool
from router.training.calibrate import SoftRouter, calibrate, soft_routing
from tests.factories import make_bundle, make_pool
from tests.router.experts import PATH, make_experts, make_layer, mixed_kinds
from tests.router.layer.test_calibration import calibrate as drawn

D, OUT = 32, 16
INPUTS, TARGETS = ["please reverse it : a b c", "say d", "copy it : x y z"], ["c b a", "d d", "x y z"]


def soft(pool: ExpertPool, found: Calibration, k: int, *, grad: bool = False) -> tuple[SoftRouter, list[torch.Tensor]]:
    module = pool.modules[PATH]
    mine = found.over([expert.digest for expert in module.experts], [PATH])
    learnt = [torch.tensor(mine.bias[0], requires_grad=grad), torch.tensor(mine.log_temperature, requires_grad=grad)]
    return SoftRouter(module, k, learnt[0], torch.arange(len(module)), learnt[1]), learnt


@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("count", [1, 6, 40])
def test_soft_routing_answers_as_the_routed_layer_does(k: int, count: int) -> None:
    pool, _ = make_experts(count, D, OUT, absent=4 if count > 4 else 0, seed=count)
    found, layer, u = drawn(pool), make_layer(D, OUT), torch.randn(3, 5, D)
    with routing(RoutingPlan(pool.calibrated(found), Phatgoose(k))):
        expected = layer(u)
    with soft_routing(layer, {"": soft(pool, found, k)[0]}):
        torch.testing.assert_close(layer(u), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(u), layer.linear(u))


def test_every_kind_of_expert_learns() -> None:
    pool = mixed_kinds(D, OUT)
    found, layer, u = drawn(pool), make_layer(D, OUT), torch.randn(7, D)
    with routing(RoutingPlan(pool.calibrated(found), Phatgoose(2))):
        expected = layer(u)
    with soft_routing(layer, {"": soft(pool, found, 2)[0]}):
        torch.testing.assert_close(layer(u), expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_finite_differences() -> None:
    pool, _ = make_experts(5, D, OUT, seed=3)
    found, layer = drawn(pool), make_layer(D, OUT)
    u, aim = torch.randn(9, D), torch.randn(9, OUT)

    def loss(router: SoftRouter) -> torch.Tensor:
        with soft_routing(layer, {"": router}):
            return (layer(u) * aim).double().sum()

    router, learnt = soft(pool, found, 2, grad=True)
    loss(router).backward()  # type: ignore[no-untyped-call]
    step = 1e-3
    for tensor in learnt:
        assert tensor.grad is not None
        for at in range(len(tensor)):
            with torch.no_grad():
                tensor[at] += step
                above = loss(router)
                tensor[at] -= 2 * step
                below = loss(router)
                tensor[at] += step
            slope = ((above - below) / (2 * step)).item()
            assert tensor.grad[at].item() == pytest.approx(slope, rel=2e-2, abs=2e-2)


def put_together(base: Path, identity: Identity, folder: Path) -> tuple[RoutedModel, Pool, list[Bundle]]:
    pool = make_pool(base, identity)
    paths = list(pool.spec.modules)
    bundles = [
        make_bundle(folder / f"b{n}", pool, identity, name=f"e{n}", rank=1 + n, modules=paths[n:], seed=n)
        for n in range(4)
    ]
    return RoutedModel.from_bundles(str(base), bundles, device="cpu"), pool, bundles


def rows_of(base: Base) -> dict[str, torch.Tensor]:
    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        return {**base.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)}

    if base.architecture == "decoder-only":
        rows = encode([f"{prompt} {target}" for prompt, target in zip(INPUTS, TARGETS, strict=True)])
        return rows | {"labels": rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)}
    labels = encode(TARGETS)
    return encode(INPUTS) | {"labels": labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)}


def loss_of(base: Base, pool: ExpertPool, rows: dict[str, torch.Tensor]) -> float:
    with torch.inference_mode(), routing(RoutingPlan(pool, Phatgoose(2))):
        return float(base.model(**rows).loss)


def test_what_is_learnt_lowers_the_loss_and_nothing_else_moves(base: Path, identity: Identity, tmp_path: Path) -> None:
    model, pool, bundles = put_together(base, identity, tmp_path)
    frozen = {name: tensor.clone() for name, tensor in model.base.model.state_dict().items()}
    start = Calibration.zeros([bundle.digest for bundle in bundles], sorted(pool.spec.modules))
    rows, experts = rows_of(model.base), model.generation.pool
    before = loss_of(model.base, experts, rows)
    found = calibrate(model.base, experts, 2, start, [rows] * 30, learning_rate=0.05)
    assert loss_of(model.base, experts.calibrated(found), rows) < before - 0.05
    assert all(torch.equal(frozen[name], tensor) for name, tensor in model.base.model.state_dict().items())
    assert np.abs(found.log_temperature).max() > 0.1
    # Whoever leaves a module alone has nothing to learn there.
    for at, path in enumerate(found.modules):
        missing = [n for n, bundle in enumerate(bundles) if path not in bundle.spec.modules]
        assert not found.bias[at, missing].any()
    again = calibrate(model.base, experts, 2, start, [rows] * 30, learning_rate=0.05)
    assert np.array_equal(again.vector, found.vector)


def test_a_loss_that_is_not_finite_ends_it(t5_base: Path, identity: Identity, tmp_path: Path) -> None:
    model, pool, bundles = put_together(t5_base, identity, tmp_path)
    start = Calibration.zeros([bundle.digest for bundle in bundles], sorted(pool.spec.modules))
    model.base.model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(Refused) as refused:
        calibrate(model.base, model.generation.pool, 2, start, [rows_of(model.base)], learning_rate=0.1)
    assert refused.value.code is Code.NOT_FINITE


def test_what_is_learnt_stays_within_what_a_calibration_holds(
    t5_base: Path, identity: Identity, tmp_path: Path
) -> None:
    model, pool, bundles = put_together(t5_base, identity, tmp_path)
    start = Calibration.zeros([bundle.digest for bundle in bundles], sorted(pool.spec.modules))
    found = calibrate(model.base, model.generation.pool, 2, start, [rows_of(model.base)], learning_rate=1e3)
    assert np.abs(found.bias).max() == MAX_BIAS
    assert np.abs(found.log_temperature).max() == MAX_LOG_TEMPERATURE
