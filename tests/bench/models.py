"""Whole models of both families against themselves without experts."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

from router.base.linear import linear_modules
from router.base.loading import Base
from router.layer.routed_linear import RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.model.routed_model import RoutedModel
from router.pool.pool import ExpertPool
from tests.bench.experts import make_expert
from tests.bench.timing import alternate, median_ratio

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXPERTS, RANK, K = 166, 8, 2
WIDTH, INNER_WIDTH, LAYERS, HEADS, WORDS = 512, 1024, 24, 8, 512
INPUT_TOKENS, NEW_TOKENS, ROUNDS = 64, 16, 5


def make_t5() -> PreTrainedModel:
    """Make a T5-like model: half of the layers read, half write."""
    config = T5Config(
        vocab_size=WORDS, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=INNER_WIDTH, num_layers=LAYERS // 2,
        num_heads=HEADS, feed_forward_proj="gated-gelu", decoder_start_token_id=0, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def make_llama() -> PreTrainedModel:
    """Make a Llama-like model."""
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=INNER_WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, pad_token_id=0, eos_token_id=None, bos_token_id=3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def bench_models(say: Callable[[object], None]) -> dict[str, dict[str, float]]:
    """Time a forward pass and greedy decoding, as multiples of the plain model's."""
    found: dict[str, dict[str, float]] = {}
    for name, make in (("t5", make_t5), ("llama", make_llama)):
        found[name] = _measure(make().eval().requires_grad_(requires_grad=False))
        say({name: found[name]})
    return found


def _measure(plain: PreTrainedModel) -> dict[str, float]:
    shapes = {path: (shape.d_in, shape.d_out) for path, shape in linear_modules(plain).items()}
    routed = RoutedModel(Base(copy.deepcopy(plain), cast("PreTrainedTokenizerBase", None)))
    pool = ExpertPool()
    for number in range(EXPERTS):
        pool = pool.add(make_expert(number, shapes, RANK))
    ids = torch.randint(4, WORDS, (1, INPUT_TOKENS))

    def under_plan(call: Callable[[PreTrainedModel, Tensor], object]) -> float:
        def with_experts() -> None:
            with routing(RoutingPlan(pool, Phatgoose(K))):
                call(routed.base.model, ids)

        took = alternate({"plain": lambda: call(plain, ids), "routed": with_experts}, rounds=ROUNDS)
        return round(median_ratio(took["routed"], took["plain"]), 2)

    return {
        "modules": len(shapes),
        "experts": EXPERTS,
        "forward": under_plan(_forward),
        "decoding": under_plan(_decode),
    }


def _forward(model: PreTrainedModel, ids: Tensor) -> None:
    if model.config.is_encoder_decoder:
        model(input_ids=ids, decoder_input_ids=ids)
    else:
        model(input_ids=ids)


def _decode(model: PreTrainedModel, ids: Tensor) -> None:
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
        do_sample=False,
    )  # fmt: skip
