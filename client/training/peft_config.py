"""A foreign adapter_config.json: what of it says something about the weights, and what no expert may say.

PEFT itself never refuses a configuration: it drops unknown keys and loads what it can. Here every key is
known, or switched off.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

LORA_KEYS = frozenset({
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "bias", "use_rslora", "use_dora", "init_lora_weights",
})  # fmt: skip
IA3_KEYS = frozenset({"feedforward_modules"})
# Say nothing about the weights, or say it again. PEFT itself finds out what fan_in_fan_out is for each module.
_INFORMATIVE = frozenset({
    "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "init_ia3_weights", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type",
})  # fmt: skip
# Others, such as PiSSA and OLoRA, change the base's weights, and PEFT changes them again whenever it loads the adapter.
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_OFF: tuple[object, ...] = (None, False, 0, "", [], {})
_WHY = {
    "bias": "an expert adds to linear modules and leaves the base's own biases alone",
    "lora_bias": "an expert's factors carry no biases",
    "modules_to_save": "an expert cannot replace modules of the base, which all experts share",
}


class Fault(NamedTuple):
    """What a configuration says that it may not."""

    key: str
    expected: str
    found: object


def first_unsupported(config: Mapping[str, Any], keys: frozenset[str]) -> Fault | None:
    """Find the first key that no expert has, beside further `keys` that are looked at elsewhere."""
    for key, value in config.items():
        if key not in _INFORMATIVE | keys and value not in _OFF:
            return Fault(key, f"nothing, since {_WHY[key]}" if key in _WHY else "nothing", value)
    if "bias" in keys and config.get("bias", "none") != "none":
        return Fault("bias", f"'none', since {_WHY['bias']}", config["bias"])
    start = config.get("init_lora_weights")
    if "init_lora_weights" in keys and start not in _HARMLESS_STARTS:
        return Fault("init_lora_weights", "a start that leaves the base's weights as they are", start)
    return None


def at_module(pattern: Mapping[str, Any], path: str, default: object) -> object:
    """Look a module up in rank_pattern or alpha_pattern as PEFT does: the first key that is its path or ends it."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", path)), default)
