"""Does adapter_config.json, which plain PEFT obeys, say exactly what the signed spec says?

PEFT itself never refuses a configuration: it drops unknown keys and loads what it can. Here every
key must be known or switched off, and the modules that PEFT would touch must be the spec's.
"""

import re
from collections.abc import Mapping
from typing import Any

from protocol.errors import Code, Refused
from protocol.kinds import BOTTLENECK_TYPE, DoraModule, Ia3Module, LoraModule, RsLoraModule
from protocol.spec import ExpertSpec

# Keys that say nothing about the weights, or that say it again; the others must match or be switched off.
# PEFT itself finds out what fan_in_fan_out is for each module.
_INFORMATIVE = {
    "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "init_ia3_weights", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "task_type",
}  # fmt: skip
_LORA_KEYS = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "bias", "use_rslora", "use_dora", "init_lora_weights",
}  # fmt: skip
# Others, such as PiSSA and OLoRA, change the base's weights, and PEFT changes them again whenever it loads the adapter.
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_OFF: tuple[object, ...] = (None, False, 0, "", [], {})
_WHY = {
    "bias": "an expert adds to linear modules and leaves the base's own biases alone",
    "lora_bias": "an expert's factors carry no biases",
    "modules_to_save": "an expert cannot replace modules of the base, which all experts share",
}
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
    match spec.kind:
        case "ia3":
            _check_keys(config, "IA3", {"feedforward_modules"})
        case "bottleneck":
            _check_keys(config, BOTTLENECK_TYPE, set())
        case _:
            _check_keys(config, "LORA", _LORA_KEYS)
    targets = _check_targets(config.get("target_modules"), spec, linears)
    match spec.kind:
        case "ia3":
            _check_sides(config.get("feedforward_modules"), spec, targets)
        case "lora" | "rslora" | "dora":
            _check_lora(config, spec)


def _check_keys(config: Mapping[str, Any], peft_type: str, keys: set[str]) -> None:
    _expect("peft_type", peft_type, config.get("peft_type"))
    for key, value in config.items():
        if key not in _INFORMATIVE | keys | {"peft_type", "target_modules"} and value not in _OFF:
            raise _mismatch(key, f"nothing, since {_WHY[key]}" if key in _WHY else "nothing", value)


def _check_lora(config: Mapping[str, Any], spec: ExpertSpec) -> None:
    if (bias := config.get("bias", "none")) != "none":
        raise _mismatch("bias", f"'none', since {_WHY['bias']}", bias)
    if (start := config.get("init_lora_weights")) not in _HARMLESS_STARTS:
        raise _mismatch("init_lora_weights", "a start that leaves the base's weights as they are", start)
    for key, kind in (("use_rslora", "rslora"), ("use_dora", "dora")):
        if (config.get(key) or False) is not (spec.kind == kind):
            raise _mismatch(key, repr(spec.kind == kind), config.get(key))
    ranks, alphas = _pattern(config, "rank_pattern"), _pattern(config, "alpha_pattern")
    for path, module in spec.modules.items():
        if isinstance(module, LoraModule | RsLoraModule | DoraModule):
            _expect(f"the rank of {path}", module.rank, _value(ranks, path, config.get("r")))
            _expect(f"the alpha of {path}", module.alpha, _value(alphas, path, config.get("lora_alpha")))


def _check_sides(found: object, spec: ExpertSpec, targets: set[str]) -> None:
    if not isinstance(found, list) or not set(found) <= targets:
        raise _mismatch("feedforward_modules", "a list of some of the target_modules", found)
    for path, module in spec.modules.items():
        # PEFT takes any end of a path, not only dotted ones.
        side = "input" if any(path.endswith(target) for target in found) else "output"
        if isinstance(module, Ia3Module):
            _expect(f"the side that {path} is scaled on", module.side, side)


def _check_targets(targets: object, spec: ExpertSpec, linears: set[str]) -> set[str]:
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
    return names


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
        raise _mismatch(what, repr(expected), found)


def _mismatch(what: str, expected: str, found: object) -> Refused:
    return Refused(
        Code.CONFIG_MISMATCH,
        f"adapter_config.json: {what}: expected {expected}, found {found!r:.200}.",
        "Write the configuration that belongs to the spec.",
    )
