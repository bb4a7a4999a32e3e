"""What breaks PEFT's Arrow, one test each: here it works, or is refused in a sentence.

Arrow's failures were seen with PEFT 0.21: ValueError for mixed ranks and for differing modules, a crash
for a rank that differs in one layer, RuntimeError for fewer experts than k, KeyError at the first forward
pass after an adapter is deleted, ValueError for LoRA beside (IA)3, DoRA's magnitudes and lora_bias left out in
silence, names lost.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from protocol.adapters import Kind
from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle, pack
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.tensors import ADAPTER_PREFIX
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests import factories

INPUTS = ["copy it : a b c", "say d"]


@pytest.fixture
def pool(llama_base: Path, identity: Identity) -> Pool:
    return factories.make_pool(llama_base, identity)


@pytest.fixture
def model(llama_base: Path) -> RoutedModel:
    return RoutedModel.from_base(str(llama_base), device="cpu")


def losses(model: RoutedModel, method: str = "phatgoose") -> list[float]:
    found = model.losses(INPUTS, INPUTS, RoutingChoice(method))
    assert torch.tensor(found).isfinite().all()
    return found


def test_mixed_ranks(model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity) -> None:
    for rank in (4, 8, 1):
        model.append(factories.make_bundle(tmp_path / f"r{rank}", pool, identity, name=f"r{rank}", rank=rank))
    losses(model)


def test_differing_modules(model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity) -> None:
    paths = list(pool.spec.modules)
    for name, modules in (("first", paths[:3]), ("last", paths[-3:]), ("odd", paths[::2])):
        model.append(factories.make_bundle(tmp_path / name, pool, identity, name=name, modules=modules))
    losses(model)
    assert len(model.generation.pool.modules[paths[0]]) == 2


def test_a_rank_that_differs_in_one_layer(model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity) -> None:
    model.append(factories.make_bundle(tmp_path / "even", pool, identity, name="even"))
    bundle = factories.make_bundle(tmp_path / "odd", pool, identity, name="odd", seed=1)
    first = next(iter(bundle.spec.modules))
    narrow = bundle.spec.modules[first].model_copy(update={"rank": 2})
    spec = bundle.spec.model_copy(update={"modules": {**bundle.spec.modules, first: narrow}})
    factories.write_weights(bundle.folder, spec, seed=1)
    model.append(pack(bundle.folder, spec, identity))
    losses(model)


@pytest.mark.parametrize("inputs", [["a"], INPUTS])
def test_fewer_experts_than_k(
    model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity, inputs: list[str]
) -> None:
    model.append(factories.make_bundle(tmp_path / "one", pool, identity, name="one"))
    routed = model.losses(inputs, inputs)
    assert routed == pytest.approx(model.losses(inputs, inputs, RoutingChoice("expert:one")), rel=1e-5)


def test_delete_then_forward(model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity) -> None:
    bundles = [
        factories.make_bundle(tmp_path / name, pool, identity, name=name, seed=seed)
        for seed, name in enumerate(("kept", "gone", "also"))
    ]
    for bundle in (bundles[0], bundles[2]):
        model.append(bundle)
    without = losses(model)
    model.remove(bundles[2].digest)
    for bundle in bundles[1:]:
        model.append(bundle)
    model.remove(bundles[1].digest)
    assert losses(model) == pytest.approx(without, rel=1e-6)


def test_lora_beside_ia3_and_dora(model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity) -> None:
    kinds: tuple[Kind, ...] = ("lora", "ia3", "dora")
    for kind in kinds:
        model.append(factories.make_bundle(tmp_path / kind, pool, identity, name=kind, kind=kind))
    losses(model)


def test_magnitudes_are_obeyed(model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity) -> None:
    bundle = factories.make_bundle(tmp_path / "dora", pool, identity, name="dora", kind="dora")
    model.append(bundle)
    before = losses(model, "expert:dora")
    tensors = load_file(bundle.folder / ADAPTER_WEIGHTS)
    doubled = {name: t * 2 if name.endswith("lora_magnitude_vector") else t for name, t in tensors.items()}
    save_file(doubled, bundle.folder / ADAPTER_WEIGHTS, {"format": "pt"})
    model.append(pack(bundle.folder, bundle.spec.model_copy(update={"name": "other"}), identity))
    assert losses(model, "expert:other") != pytest.approx(before, rel=1e-3)


def test_biases_of_factors_are_refused_and_not_left_out(
    model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity
) -> None:
    bundle = factories.make_bundle(tmp_path / "biased", pool, identity)
    path, module = next(iter(bundle.spec.modules.items()))
    tensors = load_file(bundle.folder / ADAPTER_WEIGHTS)
    tensors[f"{ADAPTER_PREFIX}{path}.lora_B.bias"] = torch.ones(module.d_out)
    save_file(tensors, bundle.folder / ADAPTER_WEIGHTS, {"format": "pt"})
    with pytest.raises(Refused, match=r"lora_B\.bias") as refused:
        model.append(pack(bundle.folder, bundle.spec, identity))
    assert refused.value.code is Code.TENSOR_NAMES


def test_magnitudes_that_the_spec_does_not_declare_are_refused(
    model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity
) -> None:
    bundle = with_magnitudes(factories.make_bundle(tmp_path / "dora", pool, identity), identity)
    with pytest.raises(Refused, match="lora_magnitude_vector") as refused:
        model.append(bundle)
    assert refused.value.code is Code.TENSOR_NAMES
    assert model.digests == ()


def with_magnitudes(bundle: Bundle, identity: Identity) -> Bundle:
    path, module = next(iter(bundle.spec.modules.items()))
    tensors = load_file(bundle.folder / ADAPTER_WEIGHTS)
    tensors[f"{ADAPTER_PREFIX}{path}.lora_magnitude_vector"] = torch.ones(module.d_out)
    save_file(tensors, bundle.folder / ADAPTER_WEIGHTS, {"format": "pt"})
    return pack(bundle.folder, bundle.spec, identity)


def test_save_then_reload(model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity) -> None:
    for seed, name in enumerate(("first", "second", "third")):
        model.append(factories.make_bundle(tmp_path / name, pool, identity, name=name, seed=seed))
    model.save_pretrained(tmp_path / "saved")
    again = RoutedModel.from_pretrained(tmp_path / "saved", base=model.base.source, device="cpu")
    assert losses(again) == pytest.approx(losses(model), rel=1e-6)
    again.append(factories.make_bundle(tmp_path / "fourth", pool, identity, name="fourth", seed=4))
    assert losses(again) != pytest.approx(losses(model), rel=1e-6)


@pytest.mark.parametrize(
    ("value", "code"), [(0.0, Code.CONSTANT_GATE), (0.7, Code.CONSTANT_GATE), (torch.nan, Code.NOT_FINITE)]
)
def test_a_gate_that_cannot_route_is_refused_and_the_served_model_unharmed(
    model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity, value: float, code: Code
) -> None:
    # With zeros as its gate an expert has the score 0, which beats every negative one.
    model.append(factories.make_bundle(tmp_path / "good", pool, identity, name="good"))
    before = losses(model)
    bundle = factories.make_bundle(tmp_path / "bad", pool, identity, name="bad", seed=1)
    gates = load_file(bundle.folder / GATES)
    name = next(iter(gates))
    gates[name].fill_(value)
    save_file(gates, bundle.folder / GATES, {"format": "pt"})
    with pytest.raises(Refused, match=name) as refused:
        model.append(pack(bundle.folder, bundle.spec, identity))
    assert refused.value.code is code
    assert losses(model) == before


def test_names_are_kept(model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity) -> None:
    for name in ("geese", "swans"):
        model.append(factories.make_bundle(tmp_path / name, pool, identity, name=name), contributor="ada")
    assert model.answer(["a"], max_new_tokens=2).experts == ("ada/geese", "ada/swans")


def test_alphas_are_each_experts_own(model: RoutedModel, pool: Pool, tmp_path: Path, identity: Identity) -> None:
    # MTTL scales every expert by the first one's alpha and rank.
    for alpha in (1.0, 16.0):
        name = f"alpha{alpha:.0f}"
        model.append(factories.make_bundle(tmp_path / name, pool, identity, name=name, alpha=alpha))
    assert losses(model, "expert:alpha1") != losses(model, "expert:alpha16")
