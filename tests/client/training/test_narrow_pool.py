"""A pool that leaves some of the base's layers alone: trained, told of, taken and routed like any other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from client.job import produce
from client.runs.consent import Share
from client.training.plan import TrainingRequest
from coordinator.admission.check import check_content
from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle
from protocol.compatibility import check_fit
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.tensors import ADAPTER_PREFIX
from router.base.linear import linear_modules
from router.base.loading import load_base
from router.layer.routed_linear import RoutingPlan, routing
from router.methods import NEEDS
from router.methods.single_expert import SingleExpert
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests import factories
from tests.client.conftest import NOW, RECIPE, Site, make_site
from tests.client.training.test_imported_adapter import elsewhere, gates_of
from tests.client.training.test_kinds import logits_of

PATTERNS = {"t5": "block", "llama": "layers"}
SHORT = RECIPE.model_copy(update={"expert_steps": 12, "gate_steps": 6, "eval_every": 6})


@pytest.fixture(params=["t5", "llama"])
def narrow(request: pytest.FixtureRequest, tmp_path: Path, operator: Identity) -> Site:
    base: Path = request.getfixturevalue(f"{request.param}_base")
    return make_site(tmp_path, base, factories.make_pool(base, operator, SHORT, layers=(1, 1)), operator)


def trained(site: Site, name: str, **order: Any) -> Bundle:
    asked = TrainingRequest((site.data,), name=name, device="cpu", **order)
    bundle = produce(site.workspace, asked, lambda _: None, NOW)
    check_fit(bundle.manifest, site.pool)
    check_content(bundle.folder, site.workspace.pool_file)
    return bundle


def test_experts_of_a_narrow_pool_touch_its_layers_alone_and_are_routed_by_every_method(narrow: Site) -> None:
    share = (Share.ALL_MEANS, Share.CENTROID)
    bundles = [trained(narrow, name, seed=seed, share=share) for seed, name in enumerate(("one", "two"))]
    whole = linear_modules(load_base(str(narrow.base), device="cpu").model)
    assert 0 < len(narrow.pool.spec.modules) == len(whole) // 2
    for bundle in bundles:
        assert bundle.spec.modules.keys() == narrow.pool.spec.modules.keys()
        told = load_file(bundle.folder / GATES)
        paths = {name.rpartition(".")[0] for name in told if name.endswith((".gate", ".mean"))}
        assert paths == set(narrow.pool.spec.modules)
        weights = {name.removeprefix(ADAPTER_PREFIX) for name in load_file(bundle.folder / ADAPTER_WEIGHTS)}
        assert {name.rsplit(".", 2)[0] for name in weights} == set(narrow.pool.spec.modules)
    model = RoutedModel.from_bundles(str(narrow.base), bundles, device="cpu")
    for method in ("phatgoose", *NEEDS):
        (answer,) = model.answer(["reverse a b c"], RoutingChoice(method), explain=True).answers
        assert {route.module for route in answer.routes} == set(narrow.pool.spec.modules), method
    # What plain PEFT makes of the folder, with the base's other layers as they are.
    family = "t5" if narrow.pool.spec.architecture == "encoder-decoder" else "llama"
    with routing(RoutingPlan(model.generation.pool, SingleExpert(model.generation.pool.find("one")))):
        found = logits_of(model.base.model, family)
    plain = load_base(str(narrow.base), device="cpu").model
    expected = logits_of(PeftModel.from_pretrained(plain, bundles[0].folder), family)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_an_adapter_that_touches_other_layers_is_a_sentence(
    family: str, request: pytest.FixtureRequest, tmp_path: Path, operator: Identity
) -> None:
    base: Path = request.getfixturevalue(f"{family}_base")
    whole = factories.make_pool(base, operator, SHORT)
    narrow = factories.make_pool(base, operator, SHORT, layers=(1, 1))
    site = make_site(tmp_path, base, narrow, operator)
    with pytest.raises(Refused, match="no module that the pool's experts touch") as refused:
        gates_of(site, elsewhere(base, family, tmp_path / "wide"))
    assert refused.value.code is Code.MODULE_UNKNOWN
    assert "in layers 1 to 1" in refused.value.hint
    fitting = elsewhere(base, family, tmp_path / "fitting", layers_to_transform=[1], layers_pattern=PATTERNS[family])
    bundle = gates_of(site, fitting)
    check_fit(bundle.manifest, narrow)
    check_content(bundle.folder, site.workspace.pool_file)
    # The coordinator refuses what a client of its own making lets through.
    outside = factories.make_bundle(tmp_path / "outside", replace(whole, digest=narrow.digest), site.contributor)
    with pytest.raises(Refused, match="no module that the pool's experts touch"):
        check_fit(outside.manifest, narrow)


def test_recomputing_activations_changes_nothing_below_the_layers_that_train(narrow: Site) -> None:
    kept, again = (load_file(trained(narrow, "it", recompute=recompute).folder / GATES) for recompute in (False, True))
    for name, gate in kept.items():
        torch.testing.assert_close(again[name], gate, rtol=1e-4, atol=1e-6)
