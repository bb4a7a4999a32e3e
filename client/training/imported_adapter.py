"""An adapter that PEFT trained elsewhere: read, held against the pool, and written as an expert's weights.

Which modules it has, of which ranks, follows from its tensors; adapter_config.json says the rest. What no
file tells is on which weights it was trained: PEFT notes the base model's name and no more, so a name that
fits proves nothing, and another one may be the same model. Training the gates measures whether it helps.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from client.training.peft_config import IA3_KEYS, LORA_KEYS, at_module, first_unsupported
from protocol.adapters import Module
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, sha256_of
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.files.atomic import new_folder
from protocol.spec import Dtype, PoolSpec
from protocol.statement import first_invalid
from protocol.tensors import ADAPTER_PREFIX, TensorInfo, read_header
from router.base.fingerprint import locate
from router.base.module_paths import numbers

_MODULE: TypeAdapter[Module] = TypeAdapter(Module)
_SUFFIXES = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".ia3_l")
_PICKLED = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_DTYPES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a pool, as far as files can tell."""

    folder: Path
    modules: Mapping[str, Module]
    dtype: Dtype
    """Of all tensors in the bundle; where they differ, float32, which holds them all."""
    base_name: str
    """What its configuration calls its base model; empty if nothing."""

    @property
    def digest(self) -> str:
        """Identity of its two files."""
        both = "".join(sha256_of(self.folder / name) for name in _FILES)
        return hashlib.sha256(both.encode()).hexdigest()


def read_adapter(name_or_path: str, pool: PoolSpec) -> Adapter:
    """Read what an adapter is, a folder or a Hugging Face id, without its weights, and hold it against a pool.

    Raises:
        Refused: `ADAPTER_UNREADABLE`, `KIND_UNSUPPORTED`, `MODULE_UNKNOWN`, `RANK_OUT_OF_BOUNDS`, or a code of
            tensors.
    """
    folder = _locate(name_or_path)
    config = strict_json.loads(
        (folder / ADAPTER_CONFIG).read_bytes(), what=ADAPTER_CONFIG, code=Code.ADAPTER_UNREADABLE
    )
    if not isinstance(config, dict):
        raise _unreadable(name_or_path, f"{ADAPTER_CONFIG} is no object")
    _check_config(config)
    found = read_header(folder / ADAPTER_WEIGHTS)
    modules = {path: _module(path, tensors, config, pool) for path, tensors in sorted(_by_module(found, pool).items())}
    codes = {info.dtype for info in found.values()}
    return Adapter(
        folder,
        modules,
        _DTYPES[codes.pop()] if len(codes) == 1 else "float32",
        str(config.get("base_model_name_or_path") or ""),
    )


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write an adapter's weights into an expert's folder, whole or not at all.

    Raises:
        Refused: `NOT_FINITE`, or `NO_EFFECT` where it adds nothing.
    """
    import torch  # noqa: PLC0415 - seconds, which reading does without
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    tensors = load_file(adapter.folder / ADAPTER_WEIGHTS)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise Refused(Code.NOT_FINITE, f"{name} of the adapter holds NaN or infinity.", "Train it again.")
        factor = name.endswith((".lora_A.weight", ".lora_B.weight"))
        if (factor and not tensor.any()) or (name.endswith(".ia3_l") and (tensor == 1).all()):
            raise Refused(
                Code.NO_EFFECT,
                f"The adapter adds nothing at {_path_of(name)}, so no gate can be trained there.",
                "Train it on, or save it without that module.",
            )
    dtype = getattr(torch, adapter.dtype)
    with new_folder(folder) as partial:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        save_file(tensors, partial / ADAPTER_WEIGHTS, {"format": "pt"})


def _locate(name_or_path: str) -> Path:
    folder = locate(name_or_path, _FILES, _unreadable)
    if not (folder / ADAPTER_WEIGHTS).is_file() and any((folder / name).exists() for name in _PICKLED):
        raise _unreadable(name_or_path, "its weights are pickled, and a pickle may run anything")
    for name in _FILES:
        if not (folder / name).is_file():
            raise _unreadable(name_or_path, f"it lacks {name}")
    return folder


def _unreadable(name_or_path: str, reason: str) -> Refused:
    return Refused(
        Code.ADAPTER_UNREADABLE,
        f"The adapter {name_or_path} cannot be read: {reason}.",
        "Give a folder or a Hugging Face id as PEFT's save_pretrained writes it, with safetensors weights.",
    )


def _check_config(config: Mapping[str, Any]) -> None:
    keys = {"LORA": LORA_KEYS, "IA3": IA3_KEYS}.get(str(config.get("peft_type")))
    if keys is None:
        raise Refused(
            Code.KIND_UNSUPPORTED,
            f"The adapter is of PEFT's type {config.get('peft_type')!r:.60}; expected LORA or IA3.",
            "LoRA, rank-stabilised LoRA, DoRA and (IA)3 can be taken.",
        )
    # What the tensors show, and the class that PEFT was given in place of a task.
    seen = frozenset({"auto_mapping", "exclude_modules", "layers_pattern", "layers_to_transform"})
    if fault := first_unsupported(config, keys | seen):
        raise Refused(
            Code.KIND_UNSUPPORTED,
            f"adapter_config.json: {fault.key}: expected {fault.expected}, found {fault.found!r:.200}.",
            "Train an adapter without it, or have PEFT convert it to plain LoRA.",
        )


def _path_of(name: str) -> str:
    ending = next(suffix for suffix in _SUFFIXES if name.endswith(suffix))
    return name.removeprefix(ADAPTER_PREFIX).removesuffix(ending)


def _by_module(found: Mapping[str, TensorInfo], pool: PoolSpec) -> dict[str, dict[str, TensorInfo]]:
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in found.items():
        if not name.startswith(ADAPTER_PREFIX) or not name.endswith(_SUFFIXES):
            raise Refused(
                Code.TENSOR_NAMES, f"{ADAPTER_WEIGHTS} holds {name!r:.200}, which is no part of an expert.",
                "Train an adapter of linear modules alone.",
            )  # fmt: skip
        path = _path_of(name)
        if path not in pool.modules:
            raise Refused(
                Code.MODULE_UNKNOWN,
                f"The adapter has tensors for {path:.200}, which is no module that the pool's experts touch.",
                f"It must be trained on {pool.base.name}, without the head and the embeddings{_only_layers(pool)}.",
            )
        modules.setdefault(path, {})[name.removeprefix(f"{ADAPTER_PREFIX}{path}.")] = info
    return modules


def _only_layers(pool: PoolSpec) -> str:
    """Say which layers an adapter may have, for a pool may leave some of the base alone."""
    there = numbers(pool.modules)
    return f", in layers {there[0]} to {there[-1]}" if there else ""


def _module(path: str, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], pool: PoolSpec) -> Module:
    shape = pool.modules[path]
    fields: dict[str, object] = {"d_in": shape.d_in, "d_out": shape.d_out}
    if config["peft_type"] == "IA3":
        side = "input" if "ia3_l" in tensors and tensors["ia3_l"].shape == (1, shape.d_in) else "output"
        fields |= {"kind": "ia3", "side": side}
    else:
        rank = tensors["lora_A.weight"].shape[0] if "lora_A.weight" in tensors else config.get("r")
        fields |= {"rank": rank, **_scaling(path, rank, config)}
    try:
        module = _MODULE.validate_python(fields)
    except ValidationError as error:
        name, reason = first_invalid(error)
        raise Refused(
            Code.RANK_OUT_OF_BOUNDS, f"At {path}, {name} of the adapter cannot be taken: {reason}.",
            "Check rank and alpha in adapter_config.json.",
        ) from error  # fmt: skip
    if module.rank > min(pool.policy.max_rank, shape.d_in, shape.d_out):
        raise Refused(
            Code.RANK_OUT_OF_BOUNDS,
            f"At {path} the adapter has rank {module.rank}; the pool takes at most {pool.policy.max_rank}.",
            "Train an adapter of a smaller rank.",
        )
    _check_shapes(path, tensors, module)
    return module


def _scaling(path: str, rank: object, config: Mapping[str, Any]) -> dict[str, object]:
    try:
        alpha = at_module(dict(config.get("alpha_pattern") or {}), path, config.get("lora_alpha"))
    except (ValueError, TypeError, re.error) as error:
        raise Refused(
            Code.ADAPTER_UNREADABLE, "adapter_config.json: alpha_pattern holds no patterns.", "Save it again with PEFT."
        ) from error
    stabilised, dora = bool(config.get("use_rslora")), bool(config.get("use_dora"))
    if stabilised and dora and isinstance(alpha, int | float) and isinstance(rank, int):
        # Both at once is a DoRA whose alpha / rank is what alpha / sqrt(rank) was.
        alpha *= math.sqrt(rank)
    return {"kind": "dora" if dora else "rslora" if stabilised else "lora", "alpha": alpha}


def _check_shapes(path: str, tensors: Mapping[str, TensorInfo], module: Module) -> None:
    if odd := sorted(module.tensors.keys() ^ tensors.keys()):
        verb = "lacks" if odd[0] in module.tensors else "holds, against its configuration,"
        raise Refused(Code.TENSOR_NAMES, f"The adapter {verb} {path}.{odd[0]}.", "Save it again with PEFT.")
    for name, shape in module.tensors.items():
        if tensors[name].shape != shape:
            raise Refused(
                Code.TENSOR_SHAPE,
                f"{path}.{name} of the adapter has shape {list(tensors[name].shape)}; on the pool's base it is "
                f"{list(shape)}.",
                "Take an adapter that was trained on the pool's base model.",
            )
