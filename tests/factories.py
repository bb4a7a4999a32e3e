"""Small real things for tests: base models, pools and bundles, made on the spot."""

import string
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from client.training.plan import lay_modules
from protocol import adapter_config
from protocol.adapters import Kind, Shape
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, GATES, Bundle, pack
from protocol.documents import Pool, sign_pool
from protocol.signing import Identity
from protocol.spec import Architecture, BaseModelRef, ExpertSpec, Policy, PoolSpec, Recipe, Statistics
from protocol.tensors import ADAPTER_PREFIX, CENTROID
from router.base.fingerprint import fingerprint
from router.base.linear import linear_modules
from router.base.loading import load_base
from router.base.module_paths import in_layers

NO_STATISTICS = Statistics()
NOW = "2026-11-22T12:00:00Z"
WORDS = ["please", "now", "reverse", "copy", "rotate", "cipher", "say", "it", ":", ";", *string.ascii_lowercase]


def save_tokenizer(folder: Path, *, begin: bool) -> PreTrainedTokenizerFast:
    """Write a word-level tokenizer that appends </s> (and, for decoders, prepends <s>)."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "<s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = "<s> $A" if begin else "$A </s>"
    special = [(word, vocabulary[word]) for word in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )
    fast.save_pretrained(folder)
    return fast


def make_t5(folder: Path, *, d_model: int = 32, seed: int = 0) -> Path:
    """Write a random T5-like model of two plus two layers."""
    torch.manual_seed(seed)
    tokenizer = save_tokenizer(folder, begin=False)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=d_model, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
        tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def make_llama(folder: Path, *, hidden_size: int = 32, seed: int = 0) -> Path:
    """Write a random Llama-like model of two layers."""
    torch.manual_seed(seed)
    tokenizer = save_tokenizer(folder, begin=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        pad_token_id=0, eos_token_id=1, bos_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_qwen2(folder: Path, *, hidden_size: int = 32, seed: int = 0) -> Path:
    """Write a random Qwen2-like model of two layers, of which the second sees eight tokens back.

    Its checkpoint wants what was written to be said less again.
    """
    torch.manual_seed(seed)
    tokenizer = save_tokenizer(folder, begin=True)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        use_sliding_window=True, sliding_window=8, max_window_layers=1, pad_token_id=0, eos_token_id=1, bos_token_id=3,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.generation_config.repetition_penalty = 1.3
    model.save_pretrained(folder)
    return folder


def make_gpt2(folder: Path, *, n_embd: int = 32, seed: int = 0) -> Path:
    """Write a random GPT-2-like model of two layers, whose weights stand the other way round."""
    torch.manual_seed(seed)
    tokenizer = save_tokenizer(folder, begin=True)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=n_embd, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, pad_token_id=0, eos_token_id=1, bos_token_id=3,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@cache
def study(base: str) -> tuple[BaseModelRef, Architecture, dict[str, Shape]]:
    """Read what a pool says of a base model: once, however many pools there are over it."""
    loaded = load_base(base, device="cpu")
    return fingerprint(base), loaded.architecture, linear_modules(loaded.model)


def make_pool(
    base: Path | str,
    identity: Identity,
    recipe: Recipe | None = None,
    layers: tuple[int, int] | None = None,
    **policy: object,
) -> Pool:
    """Sign a pool over a base model, or over some of its layers."""
    reference, architecture, modules = study(str(base))
    kept = list(modules) if layers is None else in_layers(modules, *layers)
    spec = PoolSpec(
        name="test-pool",
        base=reference,
        architecture=architecture,
        modules={path: modules[path] for path in kept},
        recipe=recipe or Recipe(),
        policy=Policy.model_validate(policy),
        coordinator=identity.public.hex,
        created=NOW,
    )
    return sign_pool(spec, identity)


def make_bundle(  # noqa: PLR0913 - one parameter a fact
    folder: Path,
    pool: Pool,
    identity: Identity,
    *,
    name: str = "expert",
    rank: int = 4,
    alpha: float = 8.0,
    modules: list[str] | None = None,
    seed: int = 0,
    kind: Kind = "lora",
    statistics: Statistics = NO_STATISTICS,
) -> Bundle:
    """Write a signed bundle with random weights, laid out as PEFT does."""
    paths = modules or list(pool.spec.modules)
    recipe = Recipe(kind=kind, rank=rank, alpha=alpha)
    laid = lay_modules({path: pool.spec.modules[path] for path in paths}, recipe)
    spec = ExpertSpec(
        name=name,
        pool=pool.digest,
        base=pool.spec.base,
        contributor=identity.public.hex,
        modules=laid,
        dtype="float32",
        statistics=statistics,
        license="apache-2.0",
        created=NOW,
        tool="tests",
    )
    folder.mkdir(parents=True)
    write_weights(folder, spec, seed)
    (folder / ADAPTER_CONFIG).write_bytes(adapter_config.render(spec, pool.spec))
    (folder / CARD).write_text(f"# {name}\n")
    return pack(folder, spec, identity)


def write_weights(folder: Path, spec: ExpertSpec, seed: int = 0) -> None:
    """Write random adapter and gate tensors for a spec."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    adapter, gates = {}, {}
    for path, module in spec.modules.items():
        for name, shape in module.tensors.items():
            # Vectors are near one, where they leave the base as it is.
            around = 1.0 if name in ("ia3_l", "lora_magnitude_vector") else 0.0
            adapter[f"{ADAPTER_PREFIX}{path}.{name}"] = draw(*shape) + around
        gates[f"{path}.gate"] = draw(module.d_in)
    # Last, so that weights and gates are the same with and without.
    gates |= {f"{path}.mean": draw(spec.modules[path].d_in) for path in spec.told}
    if spec.statistics.centroid:
        gates[CENTROID] = draw(spec.statistics.centroid.width)
    save_file(adapter, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    save_file(gates, folder / GATES, {"format": "pt"})
