"""Experts of every kind, really trained: what was trained is what PEFT loads, admission takes and a router answers."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from client.job import produce
from client.progress import Progress
from client.runs.record import ADAPTER
from client.training import pipeline
from client.training.plan import TrainingRequest, from_flags, lay_modules, make_plan, plan_modules
from coordinator.admission.check import check_content
from protocol.adapters import Ia3Module, Kind, Shape
from protocol.bundle import ADAPTER_WEIGHTS, CARD, GATES
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Recipe
from router.base.loading import load_base
from router.layer.routed_linear import RoutingPlan, routing
from router.methods.single_expert import SingleExpert
from router.model.routed_model import RoutedModel
from tests import factories
from tests.client.conftest import NOW, RECIPE, Site, make_site

SHORT = RECIPE.model_copy(update={"expert_steps": 6, "gate_steps": 4, "eval_every": 2})
CASES: list[tuple[Kind, str]] = [
    ("rslora", "t5"), ("dora", "t5"), ("ia3", "t5"), ("bottleneck", "t5"),
    ("dora", "llama"), ("ia3", "llama"), ("bottleneck", "llama"),
    ("lora", "gpt2"), ("dora", "gpt2"), ("ia3", "gpt2"), ("bottleneck", "gpt2"),
]  # fmt: skip


def logits_of(model: torch.nn.Module, base: str) -> torch.Tensor:
    batch = {"input_ids": torch.tensor([[6, 14, 15, 16, 1]])}
    if base == "t5":
        batch["decoder_input_ids"] = torch.tensor([[0, 16, 15]])
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**batch).logits
    return logits


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT puts it right, and says so
@pytest.mark.parametrize(("kind", "family"), CASES)
def test_from_rows_to_an_answer(
    kind: Kind, family: str, request: pytest.FixtureRequest, tmp_path: Path, operator: Identity
) -> None:
    base: Path = request.getfixturevalue(f"{family}_base")
    pool = factories.make_pool(base, operator, SHORT)
    site = make_site(tmp_path, base, pool, operator)
    order = TrainingRequest((site.data,), name="it", device="cpu", overrides={"kind": kind})
    bundle = produce(site.workspace, order, lambda _: None, NOW)
    assert bundle.spec.kind == kind
    assert bundle.digest == produce(site.workspace, order, lambda _: None, NOW).digest
    check_content(bundle.folder, site.workspace.pool_file)
    gates = load_file(bundle.folder / GATES)
    assert set(gates) == {f"{path}.gate" for path in pool.spec.modules}

    plain = logits_of(load_base(str(base), device="cpu").model, family)
    routed = RoutedModel.from_bundles(str(base), [bundle], device="cpu")
    with routing(RoutingPlan(routed.generation.pool, SingleExpert(routed.generation.pool.find("it")))):
        answer = logits_of(routed.base.model, family)
    assert (answer - plain).abs().max() > 1e-4
    fresh = load_base(str(base), device="cpu").model
    if kind == "bottleneck":
        with pytest.raises((KeyError, ValueError), match="GREYLAG_BOTTLENECK"):
            PeftModel.from_pretrained(fresh, bundle.folder)
        assert "plain PEFT does not load" in (bundle.folder / CARD).read_text()
    else:
        expected = logits_of(PeftModel.from_pretrained(fresh, bundle.folder), family)
        assert (answer - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["dora", "ia3", "bottleneck"])
def test_training_goes_on_where_it_was_stopped(site: Site, tmp_path: Path, kind: Kind) -> None:
    few = {"kind": kind, "expert_steps": SHORT.expert_steps, "gate_steps": SHORT.gate_steps, "eval_every": 1}
    plan = make_plan(site.workspace, TrainingRequest((site.data,), device="cpu", overrides=few))

    def stop(event: Progress) -> None:
        if (event.phase, event.step) == ("expert", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.train(plan, tmp_path / "stopped", stop)
    seen: list[Progress] = []
    pipeline.train(plan, tmp_path / "stopped", seen.append)
    assert [event.step for event in seen if event.phase == "expert"] == [4, 5, 6]
    pipeline.train(plan, tmp_path / "whole", lambda _: None)
    one, other = (load_file(tmp_path / run / ADAPTER / ADAPTER_WEIGHTS) for run in ("stopped", "whole"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name])
    assert [path.name for path in (tmp_path / "stopped" / ADAPTER).iterdir()] == [ADAPTER_WEIGHTS]


def test_ia3_scales_the_input_of_the_second_feed_forward_module() -> None:
    shapes = {
        "q": Shape(d_in=32, d_out=32), "k": Shape(d_in=32, d_out=16), "up": Shape(d_in=32, d_out=48),
        "down": Shape(d_in=48, d_out=32),
    }  # fmt: skip
    laid = lay_modules(shapes, Recipe(kind="ia3"))
    assert {path: module.side for path, module in laid.items() if isinstance(module, Ia3Module)} == {
        "down": "input", "k": "output", "q": "output", "up": "output"
    }  # fmt: skip


def test_ia3_asks_for_no_rank(site: Site) -> None:
    wide = Recipe(rank=1000)
    with pytest.raises(Refused) as refused:
        plan_modules(site.pool.spec, wide)
    assert refused.value.code is Code.RANK_OUT_OF_BOUNDS
    assert plan_modules(site.pool.spec, wide.model_copy(update={"kind": "ia3"}))


def test_an_unknown_kind_is_a_sentence() -> None:
    with pytest.raises(Refused, match=r"--kind.*'bottleneck'") as refused:
        from_flags(Recipe, {"kind": "prefix"})
    assert refused.value.code is Code.SETTINGS_INVALID
