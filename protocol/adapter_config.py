"""PEFT's adapter_config.json, derived from what was signed: for one expert of one pool there is one such file.

PEFT obeys this file when a person loads a bundle without us, and never refuses it: it loads the base that the file
names, drops keys that it does not know, and takes any dropout. So nobody writes it freely. Whoever packs a bundle
renders it, and whoever takes one in holds the bytes against those that it renders itself.

`fan_in_fan_out` is left out: PEFT finds out for each module, and says so with a warning on bases like GPT-2's.
"""

import re
from collections.abc import Mapping

from protocol.adapters import BOTTLENECK_TYPE, Ia3Module, Module
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.spec import Architecture, ExpertSpec, PoolSpec

TASKS: dict[Architecture, str] = {"encoder-decoder": "SEQ_2_SEQ_LM", "decoder-only": "CAUSAL_LM"}
"""PEFT's `task_type`."""
_NO_SUCH_FILE = "Train the other module, too, or leave this one out."


def render(spec: ExpertSpec, pool: PoolSpec) -> bytes:
    """Write the one adapter_config.json of an expert; the base is called as the pool calls it.

    Raises:
        Refused: `CONFIG_MISMATCH` for modules that no such file can name, since PEFT goes by the ends of paths.
    """
    modules = dict(sorted(spec.modules.items()))
    _check_ends(modules, pool)
    fields: dict[str, object] = {"base_model_name_or_path": pool.base.name, "target_modules": list(modules)}
    if spec.kind == "bottleneck":
        return strict_json.dumps(fields | {"peft_type": BOTTLENECK_TYPE})
    fields |= {"inference_mode": True, "task_type": TASKS[pool.architecture]}
    if spec.kind == "ia3":
        return strict_json.dumps(fields | {"peft_type": "IA3", "feedforward_modules": _scaled_inputs(modules)})
    ranks = {path: module.rank for path, module in modules.items()}
    alphas = {path: module.alpha for path, module in modules.items() if not isinstance(module, Ia3Module)}
    first = next(iter(modules))
    fields |= {"peft_type": "LORA", "r": ranks[first], "lora_alpha": alphas[first], "lora_dropout": 0.0, "bias": "none"}
    fields |= {"rank_pattern": _others(ranks, ranks[first]), "alpha_pattern": _others(alphas, alphas[first])}
    return strict_json.dumps(fields | {"use_rslora": spec.kind == "rslora", "use_dora": spec.kind == "dora"})


def _others(sizes: Mapping[str, float], first: float) -> dict[str, float]:
    """List what differs from the first module's size, each under a regular expression that fits one path alone."""
    return {f"^{re.escape(path)}": size for path, size in sizes.items() if size != first}


def _check_ends(modules: Mapping[str, Module], pool: PoolSpec) -> None:
    """Refuse modules by whose names PEFT would touch others, whose paths end in a dot and such a name."""
    for other in sorted(pool.modules.keys() - modules.keys()):
        parts = other.split(".")
        ends = (".".join(parts[start:]) for start in range(1, len(parts)))
        if end := next((end for end in ends if end in modules), None):
            what = f"adapter_config.json cannot name {end} alone: PEFT would also touch {other}."
            raise Refused(Code.CONFIG_MISMATCH, what, _NO_SUCH_FILE)


def _scaled_inputs(modules: Mapping[str, Module]) -> list[str]:
    """List the modules whose inputs are scaled; PEFT takes any path that ends like one of them for another."""
    inputs = [path for path, module in modules.items() if isinstance(module, Ia3Module) and module.side == "input"]
    for path in sorted(modules.keys() - set(inputs)):
        if path.endswith(tuple(inputs)):
            what = f"adapter_config.json cannot scale the output of {path}: its path ends like one whose input is."
            raise Refused(Code.CONFIG_MISMATCH, what, _NO_SUCH_FILE)
    return inputs
