"""Models larger than the machine: bfloat16, quantised bases, recomputed activations; and runs that stop in time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from client.job import produce
from client.progress import Progress
from client.training.plan import TrainingRequest
from coordinator.admission.check import check_content
from protocol.bundle import ADAPTER_WEIGHTS, CARD, GATES, Bundle
from protocol.errors import Code, Refused
from protocol.signing import Identity
from router.base.loading import load_base
from router.model.routed_model import RoutedModel
from tests import factories
from tests.client.conftest import NOW, RECIPE, Cli, Site, make_site

SHORT = RECIPE.model_copy(update={"expert_steps": 12, "gate_steps": 4, "eval_every": 4})


@pytest.fixture(params=["t5", "llama"])
def short_site(request: pytest.FixtureRequest, tmp_path: Path, operator: Identity) -> Site:
    base: Path = request.getfixturevalue(f"{request.param}_base")
    return make_site(tmp_path, base, factories.make_pool(base, operator, SHORT), operator)


def trained(site: Site, name: str, **thrift: Any) -> Bundle:
    order = TrainingRequest((site.data,), name=name, device="cpu", **thrift)
    bundle = produce(site.workspace, order, lambda _: None, NOW)
    check_content(bundle.folder, site.workspace.pool_file)
    return bundle


@pytest.mark.parametrize("thrift", [{"dtype": "bfloat16"}, {"quantise": "4bit"}, {"quantise": "8bit"}])
def test_a_thrifty_run_trains_an_expert_of_the_same_pool(short_site: Site, thrift: dict[str, Any]) -> None:
    bundle = trained(short_site, "it", **thrift)
    weights, gates = load_file(bundle.folder / ADAPTER_WEIGHTS), load_file(bundle.folder / GATES)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in (weights | gates).values())
    record = json.loads(next(short_site.workspace.runs.glob("*/run.json")).read_bytes())
    assert record["losses"]["expert"] < record["losses"]["base"]
    assert len(RoutedModel.from_bundles(str(short_site.base), [bundle], device="cpu").generate(["reverse a b"])) == 1
    PeftModel.from_pretrained(load_base(str(short_site.base), device="cpu").model, bundle.folder)


def test_recomputing_activations_changes_nothing(short_site: Site) -> None:
    kept, again = (trained(short_site, name, recompute=name == "again") for name in ("kept", "again"))
    for file in (ADAPTER_WEIGHTS, GATES):
        first, second = load_file(kept.folder / file), load_file(again.folder / file)
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_run_that_gets_no_better_stops(site: Site) -> None:
    hopeless = {"learning_rate": 1.0, "expert_steps": 50, "gate_steps": 1, "eval_every": 1, "patience": 3}
    seen: list[Progress] = []
    order = TrainingRequest((site.data,), device="cpu", overrides=hopeless)
    bundle = produce(site.workspace, order, seen.append, NOW)
    steps = max(event.step for event in seen if event.phase == "expert")
    assert 3 < steps < 50
    assert f"| expert | {steps} steps of 16" in (bundle.folder / CARD).read_text()


def test_the_program_takes_them_as_flags(site: Site, cli: Cli) -> None:
    flags = ("--data", site.data, "-w", site.workspace.root, "--expert-steps", 2, "--gate-steps", 1, "--device", "cpu")
    status, out, err = cli("train", *flags, "--dtype", "bfloat16", "--quantise", "4bit", "--recompute")
    assert (status, len(out.split()[0])) == (0, 64), err
    assert cli("train", *flags, "--dtype", "int3")[0] == 2


def test_a_model_that_cannot_recompute_is_a_sentence(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(T5ForConditionalGeneration, "supports_gradient_checkpointing", False)
    with pytest.raises(Refused, match="type t5 cannot compute activations again") as refused:
        trained(site, "it", recompute=True)
    assert refused.value.code is Code.SETTINGS_INVALID
