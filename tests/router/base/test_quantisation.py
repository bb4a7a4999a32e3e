"""A base in 4 or 8 bits: the same pool, the same experts."""

import logging
from pathlib import Path
from typing import get_args

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from protocol.adapters import Kind
from protocol.errors import Code, Refused
from protocol.signing import Identity
from router.base import device_map
from router.base.device_map import Bits
from router.base.linear import linear_modules, weight_of
from router.base.loading import load_base
from router.layer.routed_linear import RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.methods.single_expert import SingleExpert
from router.model.routed_model import RoutedModel
from router.training.gated_linear import attach_gates
from tests import factories

KINDS: tuple[Kind, ...] = get_args(Kind)
IDS = torch.tensor([[5, 9, 17, 4], [7, 7, 12, 2]])
BITS: tuple[Bits, ...] = get_args(Bits)


@pytest.fixture(params=["t5", "llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(f"{request.param}_base")
    return folder


def logits_of(model: nn.Module) -> Tensor:
    decoder = {"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {}  # type: ignore[union-attr] # a tensor it is not
    with torch.inference_mode():
        logits: Tensor = model(input_ids=IDS, **decoder).logits
    return logits


@pytest.mark.parametrize("bits", BITS)
def test_experts_of_every_kind_run_on_a_quantised_base(
    base: Path, bits: Bits, tmp_path: Path, identity: Identity
) -> None:
    pool = factories.make_pool(base, identity)
    model = RoutedModel.from_base(str(base), device="cpu", quantise=bits)
    assert linear_modules(load_base(str(base), device="cpu", quantise=bits).model) == pool.spec.modules
    plain = logits_of(model.base.model)
    for number, kind in enumerate(KINDS):
        bundle = factories.make_bundle(tmp_path / kind, pool, identity, name=kind, kind=kind, seed=number)
        model.append(bundle)
        expert = model.generation.pool.find(kind)
        with routing(RoutingPlan(model.generation.pool, SingleExpert(expert))):
            answer = logits_of(model.base.model)
        assert (answer - plain).abs().max() > 1e-3
        if kind in ("lora", "dora"):
            fresh = load_base(str(base), device="cpu", quantise=bits).model
            expected = logits_of(PeftModel.from_pretrained(fresh, bundle.folder).eval())
            # Activations in 8 bits turn a last digit into a step.
            near = 1e-4 if bits == "4bit" else 5e-2
            assert (answer - expected).abs().max() <= near * expected.abs().max()
    with routing(RoutingPlan(model.generation.pool, Phatgoose(2))):
        assert logits_of(model.base.model).isfinite().all()
    assert torch.equal(logits_of(model.base.model), plain)


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_reads_as_what_the_module_computes_with(base: Path, bits: Bits) -> None:
    model = load_base(str(base), device="cpu", quantise=bits).model
    logits_of(model)  # the library prepares weights when they are first used
    for path, shape in list(linear_modules(model).items())[:3]:
        linear = model.get_submodule(path)
        assert linear.weight.dtype in (torch.uint8, torch.int8)
        weight, u = weight_of(linear, path), torch.randn(5, shape.d_in)
        assert weight.shape == (shape.d_out, shape.d_in)
        bias = 0 if linear.bias is None else linear.bias
        with torch.inference_mode():
            difference = (linear(u) - u @ weight.T - bias).abs().max()
        assert difference <= (1e-5 if bits == "4bit" else 5e-2) * weight.norm(dim=1).max() * u.norm(dim=1).max()


@pytest.mark.parametrize("bits", BITS)
def test_gates_learn_on_a_quantised_base(base: Path, bits: Bits, tmp_path: Path, identity: Identity) -> None:
    pool = factories.make_pool(base, identity)
    bundle = factories.make_bundle(tmp_path / "dora", pool, identity, kind="dora")
    model = load_base(str(base), device="cpu", quantise=bits).model
    logits_of(model)  # as an evaluation in between would
    gated = attach_gates(model, bundle.folder, bundle.spec.modules)
    decoder = {"decoder_input_ids": IDS[:, :3]} if model.config.is_encoder_decoder else {}
    model(input_ids=IDS, **decoder).logits.square().mean().backward()
    assert all(layer.gate.grad is not None and layer.gate.grad.any() for layer in gated.values())


def test_no_line_for_every_product(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load_base(str(base), device="cpu", quantise="8bit").model
    with caplog.at_level(logging.WARNING):
        logits_of(model)
    assert caplog.text == ""


def test_without_the_library_it_is_a_sentence(llama_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_map, "find_spec", lambda _: None)
    with pytest.raises(Refused, match="bitsandbytes") as refused:
        load_base(str(llama_base), device="cpu", quantise="4bit")
    assert refused.value.code is Code.SETTINGS_INVALID
    assert "greylag[quantised]" in refused.value.hint
