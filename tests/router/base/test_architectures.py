"""Families of base models, as transformers has them: an expert of any kind says what it says in plain PEFT."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from protocol.adapters import Kind
from protocol.bundle import Bundle
from protocol.documents import sign_pool
from protocol.signing import Identity
from protocol.spec import PoolSpec
from router.base.linear import linear_modules
from router.base.loading import Base
from router.layer.routed_linear import Method, RoutingPlan, routing
from router.methods.base_only import BaseOnly
from router.methods.merged import Merged
from router.methods.phatgoose import Phatgoose
from router.methods.single_expert import SingleExpert
from router.model.routed_model import RoutedModel
from router.training.gated_linear import attach_gates, detach_gates
from tests import factories
from tests.protocol.samples import BASE

SMALL = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3,
    "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL | {"num_key_value_heads": 2},
    "mistral": SMALL | {"num_key_value_heads": 2},
    "qwen2": SMALL | {"num_key_value_heads": 2},
    "qwen3": SMALL | {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": SMALL | {"num_key_value_heads": 2, "head_dim": 8},
    "phi": SMALL,
    "phi3": SMALL | {"num_key_value_heads": 2},
    "gpt_neox": SMALL,
    "opt": SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 48, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0},
    "falcon": SMALL | {"ffn_hidden_size": 64},
    "olmo2": SMALL | {"num_key_value_heads": 2},
    "gpt2": {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0,
             "eos_token_id": 1, "bos_token_id": 3},
    "gptj": {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4,
             "eos_token_id": 1, "bos_token_id": 3},
    "gpt_neo": {"vocab_size": 48, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
                "attention_types": [[["global", "local"], 1]], "eos_token_id": 1, "bos_token_id": 3},
    "t5": {"vocab_size": 48, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
           "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False},
    "umt5": {"vocab_size": 48, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
             "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    "bart": {"vocab_size": 48, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 0,
             "max_position_embeddings": 64, "eos_token_id": 1, "bos_token_id": 3, "decoder_start_token_id": 1},
}  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
IDS = torch.tensor([[5, 9, 17, 4, 22, 30], [7, 7, 12, 41, 3, 2]])


def model_of(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **FAMILIES[family])
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config).eval()


def batch_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS} | ({"decoder_input_ids": IDS[:, :4]} if model.config.is_encoder_decoder else {})


def logits_of(model: Any, **batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(**batch).logits
    return logits


class Family:
    """A base of one family, its pool, and an expert of each kind."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model = model_of(name)
        self.batch = batch_of(self.model)
        self.plain = logits_of(self.model, **self.batch)
        identity = Identity.generate()
        spec = PoolSpec(
            name="pool", base=BASE, architecture="encoder-decoder", modules=linear_modules(self.model),
            coordinator=identity.public.hex, created=factories.NOW,
        )  # fmt: skip
        pool = sign_pool(spec, identity)
        self.bundles: dict[Kind, Bundle] = {
            kind: factories.make_bundle(folder / kind, pool, identity, name=kind, kind=kind, seed=number)
            for number, kind in enumerate(KINDS)
        }
        self.peft = {kind: self._peft(kind) for kind in KINDS if kind != "bottleneck"}
        self.routed = RoutedModel(Base(copy.deepcopy(self.model), factories.save_tokenizer(folder, begin=False)))

    def _peft(self, kind: Kind) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # PEFT puts it right, and says so
            expert = PeftModel.from_pretrained(copy.deepcopy(self.model), self.bundles[kind].folder)
        return logits_of(expert.eval(), **self.batch)

    def answer(self, method: Method) -> torch.Tensor:
        with routing(RoutingPlan(self.routed.generation.pool, method)):
            return logits_of(self.routed.base.model, **self.batch)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


def test_an_expert_of_any_kind_says_what_it_says_in_plain_peft(family: Family) -> None:
    for kind, bundle in family.bundles.items():
        if bundle.digest not in family.routed.digests:
            family.routed.append(bundle)
        answer = family.answer(SingleExpert(family.routed.generation.pool.find(kind)))
        assert (answer - family.plain).abs().max() > 1e-3
        if kind in family.peft:
            assert (answer - family.peft[kind]).abs().max() <= 1e-5 * family.peft[kind].abs().max(), kind


def test_a_mixed_pool_routes_and_the_base_stays_bit_for_bit(family: Family) -> None:
    for bundle in family.bundles.values():
        if bundle.digest not in family.routed.digests:
            family.routed.append(bundle)
    assert family.answer(Phatgoose(2)).isfinite().all()
    assert family.answer(Merged()).isfinite().all()
    assert torch.equal(family.answer(BaseOnly()), family.plain)


@pytest.mark.parametrize("kind", KINDS)
def test_half_open_gates_stand_between_base_and_expert(family: Family, kind: Kind) -> None:
    bundle = family.bundles[kind]
    first = next(iter(bundle.spec.modules))
    plain = family.model.get_submodule(first)
    gated = attach_gates(family.model, bundle.folder, bundle.spec.modules)
    try:
        with torch.enable_grad():
            family.model(**family.batch).logits.square().mean().backward()
        for path, layer in gated.items():
            assert layer.gate.grad is not None, path
            assert layer.gate.grad.isfinite().all()
        for layer in gated.values():
            layer.gate.data.fill_(0.0)
            layer.part = replace(layer.part, scaling=0.0, scales=None)
        torch.testing.assert_close(logits_of(family.model, **family.batch), family.plain)
    finally:
        detach_gates(family.model, gated)
    assert family.model.get_submodule(first) is plain


@pytest.mark.parametrize("first", ["float16", "bfloat16"])
def test_models_of_several_dtypes_share_nothing(t5_base: Path, first: str, tmp_path: Path, identity: Identity) -> None:
    # In float16 T5's wo stays in float32: experts take the dtype of the module beside which they stand.
    pool = factories.make_pool(t5_base, identity)
    bundles = [
        factories.make_bundle(tmp_path / kind, pool, identity, name=kind, kind=kind, seed=number)
        for number, kind in enumerate(KINDS)
    ]
    for dtype in (first, "float32", "bfloat16"):
        model = RoutedModel.from_bundles(str(t5_base), bundles, device="cpu", dtype=dtype)
        for path, module in model.generation.pool.modules.items():
            beside = model.base.model.get_submodule(path).weight.dtype
            assert {module.part(row).a.dtype for row in module.rows} == {beside}
        assert torch.tensor(model.losses(["copy it : a b"], ["a b"])).isfinite().all()
