"""A second kind of decoder: a GGUF of Gemma 3, as llama.cpp's converter writes it, becomes a base to train on.

Made up, of random weights: the published ones are under terms that a person has to accept (docs/leaderboard.md).
"""

import string
from pathlib import Path

import gguf
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from protocol.spec import Recipe
from router.base.loading import load_base
from router.query.request import RoutingChoice
from tests.lab.experts import found_pool, train_expert
from tests.lab.trial import assemble
from tests.lab.world import Row
from tests.real.base import real_base

WIDTH, HEADS, LAYERS, INNER, WINDOW = 32, 4, 7, 48, 8
BYTES, SPACE = 256, "\u2581"
TOKENS = [
    "<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{at:02X}>" for at in range(BYTES)), SPACE, *string.ascii_lowercase,
    f"{SPACE}a", "ab",
]  # fmt: skip
# Names of transformers and of GGUF, within a layer.
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def model() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(TOKENS), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        sliding_window=WINDOW,
    )  # fmt: skip
    gemma = Gemma3ForCausalLM(config).eval()
    for name, parameter in gemma.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return gemma


def write(path: Path, gemma: Gemma3ForCausalLM) -> Path:
    """Write a model as llama.cpp's converter does: scales of norms, which are kept less one, are written whole."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(WINDOW)
    writer.add_vocab_size(len(TOKENS))
    kinds = gguf.TokenType
    words = len(TOKENS) - 4 - BYTES
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([*([0.0] * (4 + BYTES)), *(-float(at) for at in range(words))])
    writer.add_token_types([kinds.CONTROL] * 3 + [kinds.UNKNOWN] + [kinds.BYTE] * BYTES + [kinds.NORMAL] * words)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(value=True)
    writer.add_add_space_prefix(value=False)
    for name, weight in gemma.state_dict().items():
        parts = name.removesuffix(".weight").split(".", 3)
        if parts[0] == "lm_head":
            continue
        written = {"embed_tokens": "token_embd", "norm": "output_norm"}.get(parts[1], "")
        written = written or f"blk.{parts[2]}.{NAMES[parts[3]]}"
        writer.add_tensor(f"{written}.weight", (weight + 1 if "norm" in name else weight).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("gemma")
    return real_base(str(write(folder / "small.gguf", model())), folder / "bases")


def test_it_computes_the_same_beyond_its_window(made: str) -> None:
    base = load_base(made, device="cpu")
    tokens = torch.tensor([base.tokenizer("ab a cab a dab a fab")["input_ids"]])
    assert [TOKENS[number] for number in tokens[0][:4]] == ["<bos>", "ab", f"{SPACE}a", SPACE]
    assert tokens.shape[1] > WINDOW
    with torch.inference_mode():
        torch.testing.assert_close(base.model(tokens).logits, model()(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_expert_trains_on_it_and_answers(made: str, tmp_path: Path) -> None:
    recipe = Recipe(
        rank=2, alpha=4.0, learning_rate=1e-2, expert_steps=24, gate_steps=2, batch_size=8, eval_every=24, held_out=0.1,
        max_input_tokens=32, max_target_tokens=16, statistics_rows=50,
    )  # fmt: skip
    rows: list[Row] = [{"input": f"say {a}{b}", "target": f"{b}{a}"} for a in "abcdef" for b in "ghijkl"]
    found_pool(tmp_path, made, recipe, (3, 6))
    routed = assemble(made, [train_expert(tmp_path, made, "swap", rows, 0)])
    asked, targets = ["say ag", "say bh"], ["ga", "hb"]
    methods = ("base", "expert:swap", "phatgoose")
    base, own, routed_to = (sum(routed.losses(asked, targets, RoutingChoice(method))) for method in methods)
    assert own < base - 0.2
    # It is alone in its pool.
    assert routed_to == pytest.approx(own, rel=1e-4)
