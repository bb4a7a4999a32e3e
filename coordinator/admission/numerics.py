"""Are the numbers of a bundle fit to compute with? Read in blocks: memory does not grow with the file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from protocol.compatibility import MAX_MEAN, is_constant
from protocol.errors import Code, Refused
from protocol.tensors import TensorInfo

_BLOCK_VALUES = 1 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_SCALES = ".ia3_l"
_PARTNERS = {".lora_B.weight": ".lora_A.weight", ".adapter_up.weight": ".adapter_down.weight", _SCALES: _SCALES}
"""A module has an effect if both tensors do."""


def check_adapter(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse adapter weights that are not finite or change nothing (`NOT_FINITE`, `NO_EFFECT`).

    Args:
        path: adapter_model.safetensors, whose header was checked.
        tensors: Its tensors by the names of `protocol.adapters`.
    """
    active = set()
    with path.open("rb") as file:
        for name, info in tensors.items():
            for block in _blocks(file, info):
                _check_finite(name, block)
                if (block != (1 if name.endswith(_SCALES) else 0)).any():
                    active.add(name)
    ends = [(name, end) for name in active for end in _PARTNERS if name.endswith(end)]
    if not any(name.removesuffix(end) + _PARTNERS[end] in active for name, end in ends):
        what = "In every module a factor is zero, or the scales are one, so the expert changes nothing."
        raise Refused(Code.NO_EFFECT, what, "Train it before submitting it.")


def check_gates(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse gates and statistics that are not finite or, being constant, cannot tell one activation from another.

    Args:
        path: gates.safetensors, whose header was checked.
        tensors: Its tensors, vectors.

    Raises:
        Refused: `NOT_FINITE` or `CONSTANT_GATE`, naming the tensor.
    """
    with path.open("rb") as file:
        for name, info in tensors.items():
            gate = np.concatenate(list(_blocks(file, info))).astype(np.float64)
            _check_finite(name, gate)
            if name.endswith(".mean") and np.abs(gate).max() > MAX_MEAN:
                what = f"{name} holds numbers beyond {MAX_MEAN:g}, which are no activations."
                raise Refused(Code.NOT_FINITE, what, "Train again with a smaller learning rate.")
            if is_constant(gate.mean(), gate.std()):
                what = f"{name} is constant, so it cannot route."
                raise Refused(Code.CONSTANT_GATE, what, "Train the gates before packing.")


def decoded(raw: bytes, code: str) -> NDArray[np.floating]:
    """Read the bytes of a tensor as numbers, by safetensors' code of its dtype."""
    return _widened(np.frombuffer(raw, _DTYPES[code]), code)


def _widened(raw: NDArray[Any], code: str) -> NDArray[np.floating]:
    # bfloat16 is the upper half of a float32.
    return (raw.astype(np.uint32) << 16).view(np.float32) if code == "BF16" else raw


def _blocks(file: BinaryIO, info: TensorInfo) -> Iterator[NDArray[np.floating]]:
    dtype = _DTYPES[info.dtype]
    file.seek(info.offset)
    rest = info.nbytes // dtype.itemsize
    while rest:
        raw = np.frombuffer(file.read(min(rest, _BLOCK_VALUES) * dtype.itemsize), dtype)
        if not raw.size:
            raise EOFError(f"{file.name} became shorter while it was read")
        rest -= raw.size
        yield _widened(raw, info.dtype)


def _check_finite(name: str, values: NDArray[np.floating]) -> None:
    if not np.isfinite(values).all():
        raise Refused(Code.NOT_FINITE, f"{name} holds NaN or infinity.", "Train again with a smaller learning rate.")
