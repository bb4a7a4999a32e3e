"""Does adapter_config.json, which plain PEFT obeys, say exactly what the signed spec says?

Every key must be known or switched off, and the modules that PEFT would touch must be the spec's.
"""

import re
from collections.abc import Mapping
from typing import Any

from protocol.adapter_config import IA3_KEYS, LORA_KEYS, at_module, first_unsupported
from protocol.adapters import BOTTLENECK_TYPE, DoraModule, Ia3Module, LoraModule, RsLoraModule
from protocol.errors import Code, Refused
from protocol.spec import ExpertSpec

_TYPES = {"ia3": ("IA3", IA3_KEYS), "bottleneck": (BOTTLENECK_TYPE, frozenset[str]())}
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def check_config(config: object, spec: ExpertSpec, linears: set[str]) -> None:
    """Hold a parsed adapter_config.json against the spec that was signed (`CONFIG_MISMATCH`).

    Args:
        config: The parsed JSON.
        spec: What was signed.
        linears: Every module path that the pool lets an expert touch.
    """
    if not isinstance(config, dict):
        raise _mismatch("the document", "an object", config)
    peft_type, keys = _TYPES.get(spec.kind, ("LORA", LORA_KEYS))
    _expect("peft_type", peft_type, config.get("peft_type"))
    if fault := first_unsupported(config, keys):
        raise _mismatch(*fault)
    targets = _check_targets(config.get("target_modules"), spec, linears)
    if keys is LORA_KEYS:
        _check_lora(config, spec)
    elif keys is IA3_KEYS:
        _check_sides(config.get("feedforward_modules"), spec, targets)


def _check_lora(config: Mapping[str, Any], spec: ExpertSpec) -> None:
    for key, kind in (("use_rslora", "rslora"), ("use_dora", "dora")):
        if (config.get(key) or False) is not (spec.kind == kind):
            raise _mismatch(key, repr(spec.kind == kind), config.get(key))
    ranks, alphas = _pattern(config, "rank_pattern"), _pattern(config, "alpha_pattern")
    for path, module in spec.modules.items():
        if isinstance(module, LoraModule | RsLoraModule | DoraModule):
            _expect(f"the rank of {path}", module.rank, at_module(ranks, path, config.get("r")))
            _expect(f"the alpha of {path}", module.alpha, at_module(alphas, path, config.get("lora_alpha")))


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
        what = f"adapter_config.json: target_modules {'also covers' if odd in touched else 'leaves out'} {odd}."
        raise Refused(Code.CONFIG_MISMATCH, what, "Write the configuration that belongs to the spec.")
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


def _expect(what: str, expected: object, found: object) -> None:
    if isinstance(found, bool) or found != expected:
        raise _mismatch(what, repr(expected), found)


def _mismatch(what: str, expected: str, found: object) -> Refused:
    return Refused(
        Code.CONFIG_MISMATCH,
        f"adapter_config.json: {what}: expected {expected}, found {found!r:.200}.",
        "Write the configuration that belongs to the spec.",
    )
