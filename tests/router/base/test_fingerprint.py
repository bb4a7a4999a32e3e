"""Fingerprints and loading."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from protocol.errors import Code, Refused
from router.base.fingerprint import check_base, fingerprint
from router.base.linear import linear_modules
from router.base.loading import load_base
from router.base.module_paths import reads_input
from tests import factories


@pytest.fixture
def copy(t5_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(t5_base, tmp_path / "copy"))


def test_the_name_is_not_the_model(t5_base: Path, copy: Path) -> None:
    assert fingerprint(str(copy)).differing_part(fingerprint(str(t5_base))) is None
    assert fingerprint(str(copy)).name == "copy"


def test_sharding_does_not_change_the_fingerprint(t5_base: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    for part in (0, 1):
        save_file({name: tensors[name] for name in names[part::2]}, copy / f"model-0000{part}-of-00002.safetensors")
    assert fingerprint(str(copy)).weights == fingerprint(str(t5_base)).weights


def test_the_library_version_is_not_the_model(t5_base: Path, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps(config | {"transformers_version": "9.9", "_name_or_path": "x"}, indent=7)
    )
    assert fingerprint(str(copy)).config == fingerprint(str(t5_base)).config


TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def settings_of(folder: Path) -> str | None:
    return fingerprint(str(folder)).tokenizer_settings


def configure(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_chat_template_is_another_base(copy: Path) -> None:
    found = [settings_of(copy)]
    for template in (TEMPLATE, TEMPLATE + " "):
        (copy / "chat_template.jinja").write_text(template)
        found.append(settings_of(copy))
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tool.jinja").write_text(TEMPLATE)
    found.append(settings_of(copy))
    configure(copy, chat_template=[{"name": "default", "template": "{{ 1 }}"}])  # the files go before it
    assert settings_of(copy) == found[-1]
    assert len(set(found)) == 4


def test_a_template_is_the_same_wherever_it_stands(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    found = [settings_of(copy)]
    (copy / "chat_template.jinja").unlink()
    for form in (TEMPLATE, [{"name": "default", "template": TEMPLATE}]):
        configure(copy, chat_template=form)
        found.append(settings_of(copy))
    assert len(set(found)) == 1


@pytest.mark.parametrize("changes", [{"eos_token": "<s>"}, {"model_max_length": 7}, {"add_prefix_space": False}])
def test_what_a_tokenizer_is_told_counts(copy: Path, t5_base: Path, changes: dict[str, object]) -> None:
    configure(copy, **changes)
    assert settings_of(copy) != settings_of(t5_base)
    with pytest.raises(Refused, match="tokenizer_settings digest") as refused:
        check_base(str(copy), fingerprint(str(t5_base)))
    assert refused.value.code is Code.BASE_MISMATCH


def test_saving_it_again_leaves_a_base_what_it_is(t5_base: Path, copy: Path, tmp_path: Path) -> None:
    token = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False, "normalized": False}
    # As versions 4 of the library wrote it, on a machine of its own.
    configure(
        copy, chat_template=TEMPLATE, eos_token=token, added_tokens_decoder={"1": token}, name_or_path="/home/x/y",
        special_tokens_map_file="/home/x/z", tokenizer_class="PreTrainedTokenizerFast", transformers_version="4.9",
    )  # fmt: skip
    before = fingerprint(str(copy))
    assert before.tokenizer_settings != settings_of(t5_base)
    for _ in range(2):
        base = load_base(str(copy), device="cpu")
        copy = tmp_path / f"{copy.name}-again"
        base.model.save_pretrained(copy)
        base.tokenizer.save_pretrained(copy)
        assert (copy / "chat_template.jinja").is_file()
        assert fingerprint(str(copy)) == before.model_copy(update={"name": copy.name})


def test_a_pool_from_before_is_held_against_what_it_knows(copy: Path, t5_base: Path) -> None:
    known = fingerprint(str(t5_base)).model_copy(update={"tokenizer_settings": None})
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    check_base(str(copy), known)
    with pytest.raises(Refused):
        check_base(str(copy), fingerprint(str(t5_base)))


def test_a_cache_from_before_is_not_believed(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    first = fingerprint(str(copy), cache)
    entry = json.loads(cache.read_text())
    del entry["base"]["tokenizer_settings"]
    entry["stamp"].pop(0)
    cache.write_text(json.dumps(entry))
    assert fingerprint(str(copy), cache) == first


@pytest.mark.parametrize("part", ["config", "weights", "tokenizer"])
def test_every_part_counts(t5_base: Path, copy: Path, part: str) -> None:
    if part == "config":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"num_heads": 8}))
    elif part == "tokenizer":
        text = (copy / "tokenizer.json").read_text()
        (copy / "tokenizer.json").write_text(text.replace('"please"', '"pleased"'))
    else:
        tensors = load_file(copy / "model.safetensors")
        tensors["shared.weight"][0, 0] += 1e-3
        save_file(tensors, copy / "model.safetensors")
    ours, theirs = fingerprint(str(copy)), fingerprint(str(t5_base))
    differing = {name for name in ("config", "weights", "tokenizer") if getattr(ours, name) != getattr(theirs, name)}
    assert differing == {part}
    with pytest.raises(Refused) as refused:
        check_base(str(copy), theirs)
    assert refused.value.code is Code.BASE_MISMATCH
    assert part in refused.value.message


def test_the_cache_is_used_until_a_file_changes(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache.json"
    first = fingerprint(str(copy), cache)
    entry = json.loads(cache.read_text())
    entry["base"]["weights"] = "0" * 64
    cache.write_text(json.dumps(entry))
    assert fingerprint(str(copy), cache).weights == "0" * 64
    tensors = load_file(copy / "model.safetensors")
    save_file({**tensors, "extra": tensors["shared.weight"][0].clone()}, copy / "model.safetensors")
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    assert fingerprint(str(copy), cache).tokenizer_settings != first.tokenizer_settings
    assert fingerprint(str(copy), cache).weights not in {first.weights, "0" * 64}
    cache.write_text("{damaged")
    assert fingerprint(str(copy), cache).tokenizer == first.tokenizer


@pytest.mark.parametrize(
    "broken", ["no folder", "no config", "no weights", "no tokenizer", "torn weights", "pickle only"]
)
def test_an_unreadable_base_is_one_sentence(copy: Path, broken: str) -> None:
    path = str(copy)
    match broken:
        case "no folder":
            path = str(copy / "nowhere")
        case "no config":
            (copy / "config.json").unlink()
        case "no weights":
            (copy / "model.safetensors").unlink()
        case "no tokenizer":
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (copy / name).unlink()
        case "torn weights":
            whole = (copy / "model.safetensors").read_bytes()
            (copy / "model.safetensors").write_bytes(whole[:100])
        case "pickle only":
            (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    for call in (fingerprint, load_base):
        with pytest.raises(Refused) as refused:
            call(path)
        assert refused.value.code is Code.BASE_UNREADABLE
        assert "\n" not in str(refused.value)


def test_the_modules_of_a_t5(t5_base: Path) -> None:
    modules = linear_modules(load_base(str(t5_base), device="cpu").model)
    # Two encoder blocks of q, k, v, o, wi, wo; two decoder blocks with cross-attention besides.
    assert len(modules) == 2 * 6 + 2 * 10
    assert "lm_head" not in modules
    assert {path for path in modules if path.startswith("decoder") and reads_input(path)} == {
        f"decoder.block.{block}.layer.1.EncDecAttention.{name}" for block in (0, 1) for name in "kv"
    }
    assert all(reads_input(path) == path.startswith("encoder") for path in modules if "EncDec" not in path)


def test_the_modules_of_a_llama(llama_base: Path) -> None:
    modules = linear_modules(load_base(str(llama_base), device="cpu").model)
    assert len(modules) == 2 * 7
    assert (modules["model.layers.0.self_attn.k_proj"].d_in, modules["model.layers.0.self_attn.k_proj"].d_out) == (
        32,
        16,
    )


def test_a_head_that_is_tied_is_not_touched(tmp_path: Path) -> None:
    base = load_base(str(factories.make_t5(tmp_path / "t5", seed=3)), device="cpu")
    assert base.model.get_output_embeddings() not in {
        base.model.get_submodule(path) for path in linear_modules(base.model)
    }
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(t5_base: Path, device: str) -> None:
    with pytest.raises(Refused) as refused:
        load_base(str(t5_base), device=device)
    assert refused.value.code is Code.SETTINGS_INVALID
    assert device in refused.value.message
