"""Adapters from elsewhere: what a plain PEFT script saved gets gates and is routed, or a sentence says why not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from client.job import produce
from client.progress import Progress
from client.training import pipeline
from client.training.plan import TrainingRequest
from coordinator.admission.check import check_content
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, GATES, Bundle, pack
from protocol.compatibility import check_derived, check_fit
from protocol.errors import Code, Refused
from protocol.signing import Identity
from router.base.loading import load_base
from router.layer.routed_linear import RoutingPlan, routing
from router.methods.single_expert import SingleExpert
from router.model.routed_model import RoutedModel
from tests import factories
from tests.client.conftest import NOW, RECIPE, Cli, Site, make_site
from tests.client.training.test_kinds import logits_of

SHORT = RECIPE.model_copy(update={"gate_steps": 4, "eval_every": 2})
ATTENTION = {"t5": ["q", "v"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}
FEED_FORWARD = {"t5": ["wo"], "llama": ["down_proj"], "gpt2": ["mlp.c_proj"]}


def elsewhere(base: Path, family: str, folder: Path, **settings: Any) -> Path:
    """What somebody does with PEFT alone: train a few steps on rows of their own, and save."""
    loaded = load_base(str(base), device="cpu")
    torch.manual_seed(3)
    if settings.pop("ia3", False):
        wide = FEED_FORWARD[family]
        config: Any = IA3Config(target_modules=ATTENTION[family] + wide, feedforward_modules=wide, **settings)
    else:
        config = LoraConfig(**{"target_modules": ATTENTION[family], "r": 4, "lora_alpha": 16, **settings})
    model = get_peft_model(loaded.model, config)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-2)
    text = torch.tensor([[6, 14, 15, 16, 16, 15, 14, 1]])
    for _ in range(8):
        model(input_ids=text, labels=text).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def gates_of(site: Site, adapter: Path | str, **order: Any) -> Bundle:
    asked = TrainingRequest((site.data,), name="it", device="cpu", adapter=str(adapter), **order)
    return produce(site.workspace, asked, lambda _: None, NOW)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("t5", {}),
    ("t5", {"ia3": True}),
    ("t5", {"target_modules": "all-linear", "use_rslora": True}),
    ("t5", {"target_modules": r".*decoder.*\.(q|v)$", "rank_pattern": {r"^decoder.block.0.*q": 2, "q|v": 3}}),
    (
        "llama",
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1.*v_proj": 6}, "layers_to_transform": [0, 1]},
    ),
    ("llama", {"ia3": True}),
    ("llama", {"use_dora": True, "use_rslora": True}),
    ("gpt2", {"fan_in_fan_out": True}),
    ("gpt2", {"ia3": True, "fan_in_fan_out": True}),
]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT puts it right, and says so
@pytest.mark.parametrize(("family", "settings"), CASES)
def test_from_a_plain_peft_script_to_a_routed_answer(
    family: str, settings: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path, operator: Identity
) -> None:
    base: Path = request.getfixturevalue(f"{family}_base")
    pool = factories.make_pool(base, operator, SHORT)
    site = make_site(tmp_path, base, pool, operator)
    adapter = elsewhere(base, family, tmp_path / "mine", **settings)
    bundle = gates_of(site, adapter)
    check_fit(bundle.manifest, pool)
    check_content(bundle.folder, site.workspace.pool_file)
    assert set(load_file(bundle.folder / GATES)) == {f"{path}.gate" for path in bundle.spec.modules}
    assert set(bundle.spec.modules) < set(pool.spec.modules) or settings.get("target_modules") == "all-linear"
    routed = RoutedModel.from_bundles(str(base), [bundle], device="cpu")
    with routing(RoutingPlan(routed.generation.pool, SingleExpert(routed.generation.pool.find("it")))):
        answer = logits_of(routed.base.model, family)
    assert len(routed.generate(["reverse a b c"])) == 1
    for folder in (adapter, bundle.folder):  # as it was, and as it is packed
        expected = logits_of(PeftModel.from_pretrained(load_base(str(base), device="cpu").model, folder), family)
        assert (answer - expected).abs().max() <= 1e-5 * expected.abs().max()
    plain = logits_of(load_base(str(base), device="cpu").model, family)
    assert (answer - plain).abs().max() > 1e-4


@pytest.fixture
def adapter(t5_base: Path, tmp_path: Path) -> Path:
    return elsewhere(t5_base, "t5", tmp_path / "mine")


def test_an_adapter_in_half_precision_stays_so(site: Site, adapter: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in load_file(adapter / ADAPTER_WEIGHTS).items()}
    save_file(weights, adapter / ADAPTER_WEIGHTS, {"format": "pt"})
    bundle = gates_of(site, adapter, overrides={"gate_steps": 2})
    assert bundle.spec.dtype == "bfloat16"
    check_content(bundle.folder, site.workspace.pool_file)
    packed = load_file(bundle.folder / ADAPTER_WEIGHTS)
    assert all(torch.equal(packed[name], tensor) for name, tensor in weights.items())


def test_a_card_says_what_was_trained_here_and_names_no_path(site: Site, adapter: Path) -> None:
    bundle = gates_of(site, adapter, overrides={"gate_steps": 2})
    card = (bundle.folder / CARD).read_text()
    assert "| expert | an adapter that was there already |" in card
    assert "by the base alone" in card
    for path in bundle.folder.iterdir():
        assert str(adapter.parent).encode() not in path.read_bytes()
    assert json.loads((bundle.folder / ADAPTER_CONFIG).read_bytes())["task_type"] == "SEQ_2_SEQ_LM"


def test_gates_go_on_where_they_were_stopped(site: Site, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(event: Progress) -> None:
        if (event.phase, event.step) == ("gates", 5):
            raise KeyboardInterrupt

    order = TrainingRequest(
        (site.data,), device="cpu", adapter=str(adapter), overrides={"gate_steps": 6, "eval_every": 2}
    )
    with pytest.raises(KeyboardInterrupt):
        produce(site.workspace, order, stop, NOW)
    seen: list[Progress] = []
    bundle = produce(site.workspace, order, seen.append, NOW)
    assert [(event.phase, event.step) for event in seen] == [("gates", 5), ("gates", 6)]
    monkeypatch.setattr(pipeline, "train", None)  # a finished run is recognised
    assert produce(site.workspace, order, seen.append, NOW).digest == bundle.digest


def test_the_program_tells_what_it_can_and_cannot_know(site: Site, adapter: Path, cli: Cli, t5_base: Path) -> None:
    flags = ("--data", site.data, "--gate-steps", 2, "--device", "cpu", "-w", site.workspace.root)
    status, out, err = cli("gates", "--adapter", adapter, *flags)
    assert (status, len(out.split()[0])) == (0, 64), err
    assert "Loss on held-out rows: " in err
    assert "a name proves nothing" in err
    assert cli("gates", "--adapter", adapter, "--rank", 4, *flags)[0] == 2  # its rank is what it is


def test_an_adapter_that_makes_things_worse_is_noticed(site: Site, adapter: Path) -> None:
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    backwards = {name: -4 * tensor if "lora_B" in name else tensor for name, tensor in weights.items()}
    save_file(backwards, adapter / ADAPTER_WEIGHTS, {"format": "pt"})
    said: list[str] = []
    order = TrainingRequest(
        (site.data,), device="cpu", adapter=str(adapter), overrides={"gate_steps": 1, "learning_rate": 1e-6}
    )
    produce(site.workspace, order, lambda _: None, NOW, said.append)
    assert "does not help" in said[-1]
    assert Path(said[0].removeprefix("How it went: ")).read_bytes().startswith(b"\x89PNG")


def configured(**fields: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / ADAPTER_CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def test_a_bundle_that_an_older_version_packed_is_packed_anew(site: Site, adapter: Path) -> None:
    bundle = gates_of(site, adapter, overrides={"gate_steps": 1})
    configured(peft_version="0.0.1")(bundle.folder)
    pack(bundle.folder, bundle.spec, site.workspace.identity())
    check_derived(gates_of(site, adapter, overrides={"gate_steps": 1}).manifest, site.pool)


def weighted(change: Any) -> Any:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        save_file(change(tensors), folder / ADAPTER_WEIGHTS, {"format": "pt"})

    return apply


def pickled(folder: Path) -> None:
    (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin")


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("SelfAttention.q", "SelfAttention.nowhere"): tensor for name, tensor in tensors.items()}


def wider(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: nn.functional.pad(tensor, (0, 8)) if "lora_A" in name else tensor for name, tensor in tensors.items()}


def halved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "lora_B" not in name}


def headed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"base_model.model.lm_head.weight": torch.zeros(4, 4)}


def downless(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor * ("lora_A" not in name) for name, tensor in tensors.items()}


REFUSALS = [
    (shutil.rmtree, Code.ADAPTER_UNREADABLE, "there is no such folder"),
    (lambda folder: (folder / ADAPTER_CONFIG).unlink(), Code.ADAPTER_UNREADABLE, "lacks adapter_config.json"),
    (lambda folder: (folder / ADAPTER_CONFIG).write_text("[]"), Code.ADAPTER_UNREADABLE, "no object"),
    (pickled, Code.ADAPTER_UNREADABLE, "pickled"),
    (configured(peft_type="PREFIX_TUNING"), Code.KIND_UNSUPPORTED, "expected LORA or IA3"),
    (configured(lora_bias=True), Code.KIND_UNSUPPORTED, "lora_bias: expected nothing, since"),
    (configured(bias="all"), Code.KIND_UNSUPPORTED, "bias: expected 'none'"),
    (configured(modules_to_save=["lm_head"]), Code.KIND_UNSUPPORTED, "modules_to_save"),
    (configured(trainable_token_indices=[3]), Code.KIND_UNSUPPORTED, "trainable_token_indices: expected nothing"),
    (configured(alora_invocation_tokens=[5]), Code.KIND_UNSUPPORTED, "alora_invocation_tokens: expected nothing"),
    (configured(target_parameters=["q.weight"]), Code.KIND_UNSUPPORTED, "target_parameters: expected nothing"),
    (configured(init_lora_weights="pissa"), Code.KIND_UNSUPPORTED, "init_lora_weights"),
    (configured(alpha_pattern={"(": 3}), Code.ADAPTER_UNREADABLE, "alpha_pattern"),
    (configured(lora_alpha="much"), Code.RANK_OUT_OF_BOUNDS, "alpha"),
    (weighted(renamed), Code.MODULE_UNKNOWN, "nowhere"),
    (weighted(wider), Code.TENSOR_SHAPE, "on the pool's base it is"),
    (weighted(halved), Code.TENSOR_NAMES, "lacks"),
    (weighted(headed), Code.TENSOR_NAMES, "no part of an expert"),
    (configured(use_dora=True), Code.TENSOR_NAMES, "lacks"),
    (weighted(lambda found: {name: tensor * 0 for name, tensor in found.items()}), Code.NO_EFFECT, "adds nothing at"),
    (weighted(downless), Code.NO_EFFECT, "adds nothing at"),
    (weighted(lambda found: {name: tensor / 0 for name, tensor in found.items()}), Code.NOT_FINITE, "NaN or infinity"),
]


@pytest.mark.parametrize(("spoil", "code", "words"), REFUSALS)
def test_what_cannot_be_taken_is_a_sentence(site: Site, adapter: Path, spoil: Any, code: Code, words: str) -> None:
    spoil(adapter)
    with pytest.raises(Refused) as refused:
        gates_of(site, adapter)
    assert (refused.value.code, words in refused.value.message) == (code, True), refused.value
    assert not site.workspace.bundles.exists()


def test_a_pool_bounds_ranks(t5_base: Path, tmp_path: Path, operator: Identity, adapter: Path) -> None:
    pool = factories.make_pool(t5_base, operator, SHORT.model_copy(update={"rank": 2}), max_rank=2)
    with pytest.raises(Refused, match="rank 4; the pool takes at most 2"):
        gates_of(make_site(tmp_path / "narrow", t5_base, pool, operator), adapter)


def test_an_id_that_the_hub_does_not_know(site: Site) -> None:
    with pytest.raises(Refused) as refused:
        gates_of(site, "nobody/has-this")
    assert refused.value.code is Code.ADAPTER_UNREADABLE
