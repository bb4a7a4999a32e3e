"""Does adapter_config.json, which plain PEFT obeys, say exactly what the signed spec says?

PEFT itself never refuses a configuration: it drops unknown keys and loads what it can. Here every
key must be known or switched off, and the modules that PEFT would touch must be the spec's.
"""

import re
from collections.abc import Mapping
from typing import Any

from protocol.errors import Code, Refused
from protocol.spec import ExpertSpec

# Keys that say nothing about the weights, or that say it again; the others must match or be switched off.
_INFORMATIVE = {
    "base_model_name_or_path", "inference_mode", "init_lora_weights", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "task_type",
}  # fmt: skip
_CHECKED = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "bias"}
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def check_config(config: object, spec: ExpertSpec, linears: set[str]) -> None:
    """Hold a parsed adapter_config.json against the spec.

    Args:
        config: The parsed JSON.
        spec: What was signed.
        linears: Every module path of the base model that an expert may touch.

    Raises:
        Refused: `CONFIG_MISMATCH`, naming the key, what is expected and what was found.
    """
    if not isinstance(config, dict):
        raise _mismatch("the document", "an object", config)
    _expect("peft_type", "LORA", config.get("peft_type"))
    _expect("bias", "none", config.get("bias", "none"))
    for key, value in config.items():
        if key not in _INFORMATIVE | _CHECKED and value not in (None, False, 0, "", [], {}):
            raise _mismatch(key, "nothing", value)
    _check_targets(config.get("target_modules"), spec, linears)
    ranks = _pattern(config, "rank_pattern")
    alphas = _pattern(config, "alpha_pattern")
    for path, module in spec.modules.items():
        _expect(f"the rank of {path}", module.rank, _value(ranks, path, config.get("r")))
        _expect(f"the alpha of {path}", module.alpha, _value(alphas, path, config.get("lora_alpha")))


def _check_targets(targets: object, spec: ExpertSpec, linears: set[str]) -> None:
    if not isinstance(targets, list) or not all(
        isinstance(target, str) and _PLAIN_PATH.fullmatch(target) for target in targets
    ):
        raise _mismatch("target_modules", "a list of module paths", targets)
    names = set(targets)
    # PEFT touches a module whose path is a target or ends in a dot and a target.
    touched = {path for path in linears | set(spec.modules) if any(suffix in names for suffix in _suffixes(path))}
    if touched != set(spec.modules):
        odd = min(touched ^ set(spec.modules))
        raise Refused(
            Code.CONFIG_MISMATCH,
            f"adapter_config.json: target_modules {'also covers' if odd in touched else 'leaves out'} {odd}.",
            "Write the configuration that belongs to the spec.",
        )
    used = {suffix for path in touched for suffix in _suffixes(path)}
    if unused := sorted(names - used):
        raise _mismatch("target_modules", "targets that the spec names", unused[0])


def _suffixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _pattern(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    pattern = config.get(name) or {}
    # PEFT reads the keys as regular expressions; plain paths cannot take exponential time.
    if not isinstance(pattern, dict) or not all(_PLAIN_PATH.fullmatch(key) for key in pattern):
        raise _mismatch(name, "module paths", pattern)
    return pattern


def _value(pattern: Mapping[str, Any], path: str, default: object) -> object:
    """Look a module up as PEFT does: the first key that is the path or a dotted end of it."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _expect(what: str, expected: object, found: object) -> None:
    if isinstance(found, bool) or found != expected:
        raise _mismatch(what, expected, found)


def _mismatch(what: str, expected: object, found: object) -> Refused:
    return Refused(
        Code.CONFIG_MISMATCH,
        f"adapter_config.json: {what}: expected {expected!r}, found {found!r:.200}.",
        "Write the configuration that belongs to the spec.",
    )
