"""Which base model this is: digests of its config, weights, tokenizer, and what its tokenizer is told."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.spec import BaseModelRef

TOKENIZER_FILES = (
    *("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
    "special_tokens_map.json",
)
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""All that a base model is loaded from."""
# Written by the library that saved the model, not facts about it.
_VOLATILE_CONFIG = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}
_VOLATILE_SETTINGS = {
    *("_commit_hash", "_name_or_path", "name_or_path", "transformers_version", "backend", "is_local"),
    *("local_files_only", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file"),
}
_SETTINGS = "tokenizer_config.json"
_TEMPLATE, _TEMPLATES = "chat_template.jinja", "additional_chat_templates/*.jinja"
_CLASSES = {"PreTrainedTokenizer": "TokenizersBackend"}
"""Names of one and the same class in versions 4 and 5 of the library, less `Fast`."""
_BLOCK_BYTES = 1 << 22


def unreadable(name_or_path: str, reason: str, what: str = "base") -> Refused:
    """Say that a model's files cannot be read."""
    return Refused(
        Code.BASE_UNREADABLE,
        f"The {what} model {name_or_path} cannot be loaded: {reason}.",
        "Give a folder or a Hugging Face id that holds config.json, safetensors weights and a tokenizer.",
    )


def locate(
    name_or_path: str, files: Sequence[str] = FILES, refusal: Callable[[str, str], Refused] = unreadable
) -> Path:
    """Return the folder that is meant; if it is a Hub id, fetch the files that match patterns.

    Raises:
        Refused: `BASE_UNREADABLE`, or as `refusal` makes it of the name and the reason.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    if name_or_path.startswith((".", "/", "~")):
        raise refusal(name_or_path, "there is no such folder")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a folder needs no network code
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise refusal(name_or_path, first_line(error)) from error


def fingerprint(name_or_path: str, cache: Path | None = None) -> BaseModelRef:
    """Compute what a base model is by content.

    Weights are digested tensor by tensor in the order of their names, so that a model keeps its
    fingerprint however it is sharded. Needs no torch.

    Args:
        name_or_path: Folder or Hub id.
        cache: A JSON file that keeps the result for as long as sizes and times of the files stay.

    Raises:
        Refused: `BASE_UNREADABLE`.
    """
    folder = locate(name_or_path)
    try:
        stamp = _stamp(folder)
        if cache is not None and (known := _read_cache(cache, stamp)):
            return known
        config = json.loads((folder / "config.json").read_bytes())
        ref = BaseModelRef(
            name=display_name(name_or_path),
            config=_digest_of({key: value for key, value in config.items() if key not in _VOLATILE_CONFIG}),
            weights=_weights_digest(folder),
            tokenizer=_tokenizer_digest(folder),
            tokenizer_settings=_settings_digest(folder),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # files may hold anything
        raise unreadable(name_or_path, first_line(error)) from error
    if cache is not None:
        _write_cache(cache, stamp, ref)
    return ref


def check_base(name_or_path: str, expected: BaseModelRef, cache: Path | None = None) -> None:
    """Refuse any base model but the one that a pool or a release was made for, by its `fingerprint`.

    Raises:
        Refused: `BASE_MISMATCH` or `BASE_UNREADABLE`.
    """
    found = fingerprint(name_or_path, cache)
    if part := found.differing_part(expected):
        raise Refused(
            Code.BASE_MISMATCH,
            f"{name_or_path} is not the pool's base model {expected.name}: expected {part} digest "
            f"{getattr(expected, part)[:16]}, found {getattr(found, part)[:16]}.",
            f"Get {expected.name} and give its folder or Hugging Face id with --base.",
        )


def first_line(error: Exception) -> str:
    """Shorten a library's error to what fits into a sentence of ours: its first line without the full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def display_name(name_or_path: str) -> str:
    """Return what people call a model; a local path is private, but for its last part."""
    return Path(name_or_path).resolve().name if Path(name_or_path).is_dir() else name_or_path


def _digest_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _tokenizer_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in tokenizer_files(folder):
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def tokenizer_files(folder: Path) -> list[str]:
    """List the files of a base model's tokenizer that are there."""
    present = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not present:
        # transformers would make up an empty tokenizer for some architectures.
        raise ValueError("no tokenizer file found")
    return present


def _settings_digest(folder: Path) -> str:
    path = folder / _SETTINGS
    settings = json.loads(path.read_bytes()) if path.is_file() else {}
    templates = settings.pop("chat_template", None) or []
    templates = [{"name": "default", "template": templates}] if isinstance(templates, str) else templates
    named = {each["name"]: each["template"] for each in templates}
    named |= {path.stem: path.read_text("utf-8") for path in folder.glob(_TEMPLATES)}
    if (folder / _TEMPLATE).is_file():
        named["default"] = (folder / _TEMPLATE).read_text("utf-8")
    facts = {key: _content(value) for key, value in settings.items() if key not in _VOLATILE_SETTINGS}
    if (folder / TOKENIZER_FILES[0]).is_file():
        facts.pop("added_tokens_decoder", None)  # which repeats what that file holds
    name = str(facts.pop("tokenizer_class", "")).removesuffix("Fast")
    told = {key: value for key, value in facts.items() if value is not None}
    return _digest_of(told | {"tokenizer_class": _CLASSES.get(name, name), "chat_templates": named})


def _content(value: Any) -> Any:
    """Reduce a token to its content, as the library does when it saves a tokenizer again."""
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return value["content"]
    return [_content(each) for each in value] if isinstance(value, list) else value


def _weights_digest(folder: Path) -> str:
    tensors = sorted(entry for path in sorted(folder.glob("*.safetensors")) for entry in _tensor_digests(path))
    if not tensors:
        raise ValueError("no safetensors weights found")
    return hashlib.sha256("\n".join(tensors).encode()).hexdigest()


def _tensor_digests(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path.name} is not a safetensors file")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            digest = hashlib.sha256()
            for start in range(begin, end, _BLOCK_BYTES):
                digest.update(file.read(min(_BLOCK_BYTES, end - start)))
            yield f"{name} {entry['dtype']} {entry['shape']} {digest.hexdigest()}"


def _stamp(folder: Path) -> list[Any]:
    names = ("config.json", _SETTINGS, _TEMPLATE, *TOKENIZER_FILES)
    files = [folder / name for name in names if (folder / name).is_file()]
    files += sorted([*folder.glob("*.safetensors"), *folder.glob(_TEMPLATES)])
    # What is told of a base comes first: a cache from before something was added is of no use.
    return [
        [*BaseModelRef.model_fields],
        str(folder.resolve()),
        *([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files),
    ]


def _read_cache(cache: Path, stamp: list[Any]) -> BaseModelRef | None:
    with suppress(OSError, ValueError, KeyError):  # a lost or damaged cache costs a recomputation, nothing else
        entry = json.loads(cache.read_bytes())
        if entry["stamp"] == stamp:
            return BaseModelRef.model_validate(entry["base"])
    return None


def _write_cache(cache: Path, stamp: list[Any], ref: BaseModelRef) -> None:
    with suppress(OSError):  # a full or read-only disk: computed again the next time
        write_whole(cache, json.dumps({"stamp": stamp, "base": ref.model_dump()}).encode())
