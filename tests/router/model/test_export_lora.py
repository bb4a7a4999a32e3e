"""A request's mixture as a plain LoRA: exact at full rank, the best at less, and what plain PEFT computes."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from peft import PeftModel

from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from router.base.loading import load_base
from router.model.export_lora import merge
from router.model.planner import plan
from router.model.routed_model import RoutedModel
from router.pool.calibration import MAX_BIAS, Calibration
from router.pool.expert_module import ExpertModule
from router.query.request import RoutingChoice
from tests.factories import make_bundle

TEXTS = ["please reverse it : a b c", "copy now ; d e"]


def part(r: int, d: int, o: int, scaling: float) -> ExpertModule:
    return ExpertModule(torch.randn(r, d), torch.randn(o, r), scaling, torch.zeros(d))


@pytest.mark.parametrize(("d", "o"), [(24, 40), (40, 24), (5, 7)])
def test_full_rank_is_the_sum(d: int, o: int) -> None:
    parts = [(0.5, part(3, d, o, 2.0)), (0.3, part(1, d, o, 0.5)), (0.2, part(4, d, o, 1.0))]
    exact = sum(weight * each.scaling * each.b.double() @ each.a.double() for weight, each in parts)
    merged = merge(parts, 100)
    assert len(merged.a) == merged.b.shape[1] <= min(8, d, o)
    assert merged.kept == pytest.approx(1)
    torch.testing.assert_close(merged.b.double() @ merged.a.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_smaller_rank_is_the_best_there_is(rank: int) -> None:
    parts = [(0.6, part(4, 24, 40, 1.0)), (0.4, part(3, 24, 40, 1.0))]
    exact = torch.stack([weight * each.b.double() @ each.a.double() for weight, each in parts]).sum(0)
    u, s, v = torch.linalg.svd(exact)
    best = u[:, :rank] * s[:rank] @ v[:rank]
    merged = merge(parts, rank)
    torch.testing.assert_close(merged.b.double() @ merged.a.double(), best, atol=1e-5, rtol=1e-5)
    assert merged.kept == pytest.approx((s[:rank].square().sum() / s.square().sum()).item())
    assert merged.norm == pytest.approx(exact.square().sum().item())


@pytest.fixture
def model(base: Path, pool: Pool, tmp_path: Path) -> RoutedModel:
    some = list(pool.spec.modules)[1:]
    bundles = [
        make_bundle(tmp_path / "a", pool, Identity.generate(), seed=1, rank=2),
        make_bundle(tmp_path / "b", pool, Identity.generate(), seed=2, rank=3, modules=some),
    ]
    return RoutedModel.from_bundles(str(base), bundles, device="cpu")


def peft_losses(base: Path, adapter: Path, model: RoutedModel) -> list[float]:
    """Losses of the exported adapter on the plain base, by plain PEFT."""
    loaded = load_base(str(base), device="cpu")
    plain = PeftModel.from_pretrained(loaded.model, str(adapter)).eval()
    return RoutedModel.losses(_Around(plain, loaded, model), TEXTS, TEXTS, RoutingChoice(method="base"))  # type: ignore[arg-type]


class _Around:
    """Scores a plain model with the code that scores the routed one."""

    likelihoods = RoutedModel.likelihoods

    def __init__(self, plain: PeftModel, loaded: object, model: RoutedModel) -> None:
        self.held, self.features = model.held, model.features
        self.base = type(
            "Base", (), {"model": plain, "tokenizer": model.base.tokenizer, "architecture": model.base.architecture}
        )


def test_plain_peft_computes_the_merged_experts(base: Path, model: RoutedModel, tmp_path: Path) -> None:
    choice = RoutingChoice(method="merged")
    exported = model.export_lora(tmp_path / "lora", TEXTS, choice, rank=5, max_new_tokens=3)
    assert exported.kept == pytest.approx(1)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (5, 5, {})
    assert peft_losses(base, tmp_path / "lora", model) == pytest.approx(model.losses(TEXTS, TEXTS, choice), rel=1e-4)


def test_the_request_is_planned_once(model: RoutedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = Mock(side_effect=plan)
    monkeypatch.setattr("router.model.routed_model.plan", planned)
    model.export_lora(tmp_path / "lora", TEXTS, rank=5, max_new_tokens=2)
    planned.assert_called_once()


def test_one_expert_comes_out_as_it_went_in(base: Path, model: RoutedModel, tmp_path: Path) -> None:
    name = model.generation.pool.experts[0].name
    model.remove(model.digests[1])
    choice = RoutingChoice(method=f"expert:{name}")
    exported = model.export_lora(tmp_path / "lora", TEXTS, choice, rank=64, max_new_tokens=3)
    assert (exported.rank, list(exported.shares.values())) == (2, [1.0])
    assert peft_losses(base, tmp_path / "lora", model) == pytest.approx(model.losses(TEXTS, TEXTS, choice), rel=1e-4)


@pytest.mark.parametrize("method", ["uniform", "genknowsub:general", "parameter-average"])
def test_weights_come_out_as_they_are_whatever_they_sum_to(
    base: Path, model: RoutedModel, pool: Pool, tmp_path: Path, method: str
) -> None:
    model.remove(model.digests[1])
    some = list(pool.spec.modules)[1:]
    model.append(make_bundle(tmp_path / "g", pool, Identity.generate(), seed=3, modules=some), name="general")
    exported = model.export_lora(tmp_path / "lora", TEXTS, RoutingChoice(method), rank=9, max_new_tokens=3)
    assert sum(exported.shares.values()) == pytest.approx(1)
    scored = model.losses(TEXTS, TEXTS, RoutingChoice(method))
    assert peft_losses(base, tmp_path / "lora", model) == pytest.approx(scored, rel=1e-4)


def test_a_calibration_is_in_what_is_traced_and_exported(base: Path, model: RoutedModel, tmp_path: Path) -> None:
    """Biases so far apart that every token's weights are 0 and 1, so that the mean mixture is the model's own."""
    plain, experts = model.losses(TEXTS, TEXTS), model.generation.pool
    empty = Calibration.zeros(model.digests, list(experts.modules))
    vector = empty.vector
    vector[: empty.bias.size] = np.tile(np.array([-MAX_BIAS, MAX_BIAS], np.float32), len(empty.modules))
    model.generation = replace(model.generation, pool=experts.calibrated(empty.at(vector)))
    for answer in model.answer(TEXTS, max_new_tokens=3, explain=True, full=True).answers:
        for route in answer.routes:
            weights = np.zeros((len(route.experts), 2))
            np.put_along_axis(weights, route.experts, route.weights, axis=1)
            expected = [0.0, 1.0] if len(experts.modules[route.module]) > 1 else [1.0, 0.0]
            assert weights == pytest.approx(np.broadcast_to(expected, weights.shape))
            assert route.full == pytest.approx(weights)
    scored = model.losses(TEXTS, TEXTS)
    assert scored != pytest.approx(plain, rel=1e-3)
    model.export_lora(tmp_path / "lora", TEXTS, rank=5, max_new_tokens=3)
    assert peft_losses(base, tmp_path / "lora", model) == pytest.approx(scored, rel=1e-4)


def test_a_routed_mixture_says_what_a_rank_keeps(model: RoutedModel, tmp_path: Path) -> None:
    kept = [model.export_lora(tmp_path / str(rank), TEXTS, rank=rank, max_new_tokens=3).kept for rank in (1, 3, 5)]
    assert 0 < kept[0] < kept[1] < kept[2] == pytest.approx(1)


def test_what_is_no_lora_is_refused(model: RoutedModel, pool: Pool, tmp_path: Path) -> None:
    model.append(make_bundle(tmp_path / "c", pool, Identity.generate(), seed=3, kind="ia3"), name="scales")
    with pytest.raises(Refused) as refused:
        model.export_lora(tmp_path / "lora", TEXTS, RoutingChoice(method="expert:scales"), rank=8, max_new_tokens=3)
    assert refused.value.code is Code.KIND_UNSUPPORTED
    assert "scales" in refused.value.message
    model.export_lora(tmp_path / "lora", TEXTS, RoutingChoice(deny=("scales",)), rank=8, max_new_tokens=3)


def test_nothing_to_export_is_refused(model: RoutedModel, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        model.export_lora(tmp_path / "lora", TEXTS, RoutingChoice(method="base"), rank=8, max_new_tokens=3)
    assert refused.value.code is Code.REQUEST_INVALID
    assert not (tmp_path / "lora").exists()


def test_nothing_is_written_over(model: RoutedModel, tmp_path: Path) -> None:
    (tmp_path / "lora").write_text("dear")
    with pytest.raises(Refused) as refused:
        model.export_lora(tmp_path / "lora", TEXTS, rank=8, max_new_tokens=3)
    assert refused.value.code is Code.WORKSPACE_EXISTS
