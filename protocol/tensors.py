"""safetensors headers, read here and strictly.

The library's own parser accepts 300,000 empty tensors, five-megabyte names, `../` in names and
50 MB of metadata. A bundle has an exact list of tensors, so everything else is refused before a
single weight is looked at. Format: https://github.com/huggingface/safetensors#format.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.spec import ExpertSpec

ADAPTER_PREFIX = "base_model.model."
CENTROID = "centroid"
MAX_HEADER_BYTES = 1 << 20
DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
DTYPE_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class TensorInfo(NamedTuple):
    """Where and what a tensor is."""

    dtype: str
    """safetensors' code: F32, BF16 or F16."""
    shape: tuple[int, ...]
    offset: int = 0
    """First byte, from the start of the file."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def adapter_tensors(spec: ExpertSpec) -> dict[str, TensorInfo]:
    """The exact tensors of adapter_model.safetensors, under the names that PEFT writes where it knows the kind."""
    code = DTYPE_CODES[spec.dtype]
    return {
        f"{ADAPTER_PREFIX}{path}.{name}": TensorInfo(code, shape)
        for path, module in spec.modules.items()
        for name, shape in module.tensors.items()
    }


def gate_tensors(spec: ExpertSpec) -> dict[str, TensorInfo]:
    """The exact tensors of gates.safetensors: float32 vectors, one [d_in] a module, and the declared statistics."""
    expected = {f"{path}.gate": TensorInfo("F32", (module.d_in,)) for path, module in spec.modules.items()}
    expected |= {f"{path}.mean": TensorInfo("F32", (spec.modules[path].d_in,)) for path in spec.told}
    if centroid := spec.statistics.centroid:
        expected[CENTROID] = TensorInfo("F32", (centroid.width,))
    return expected


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file (`TENSOR_HEADER`).

    Returns:
        Tensors by name, in file order. Together they cover the file without gap or overlap.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise Refused(Code.TENSOR_HEADER, f"{path.name} declares a header of {length} bytes.")
        header = file.read(length)
    fields = strict_json.loads(header, what=f"The header of {path.name}", code=Code.TENSOR_HEADER)
    if not isinstance(fields, dict) or not header.startswith(b"{"):
        raise Refused(Code.TENSOR_HEADER, f"The header of {path.name} is not an object.")
    metadata = fields.pop("__metadata__", {})
    if metadata not in ({}, {"format": "pt"}):
        raise Refused(Code.TENSOR_HEADER, f"{path.name} carries metadata other than the format.")
    start = 8 + len(header)
    tensors = {name: _tensor(name, entry, start, path.name) for name, entry in fields.items()}
    _check_cover(tensors, start, size, path.name)
    return tensors


def check(path: Path, expected: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Read a header and hold it against the exact expected tensors.

    Raises:
        Refused: `TENSOR_HEADER`, `TENSOR_NAMES`, `TENSOR_SHAPE` or `TENSOR_DTYPE`, naming the first fault.
    """
    found = read_header(path)
    if missing := sorted(expected.keys() - found.keys()):
        raise Refused(Code.TENSOR_NAMES, f"{path.name} lacks {missing[0]} ({len(missing)} tensors missing).")
    if extra := sorted(found.keys() - expected.keys()):
        raise Refused(Code.TENSOR_NAMES, f"{path.name} holds {extra[0]!r:.200}, which the spec does not declare.")
    for name, info in found.items():
        want = expected[name]
        if info.dtype != want.dtype:
            raise Refused(Code.TENSOR_DTYPE, f"{name} in {path.name} is {info.dtype}; expected {want.dtype}.")
        if info.shape != want.shape:
            what = f"{name} in {path.name} has shape {list(info.shape)}; expected {list(want.shape)}."
            raise Refused(Code.TENSOR_SHAPE, what)
    return found


def _tensor(name: str, entry: object, start: int, file: str) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **others} if (
            not others
            and type(begin) is type(end) is int
            and 1 <= len(shape) <= 2  # noqa: PLR2004 - vectors and matrices
            and all(type(width) is int and width > 0 for width in shape)
        ):
            if dtype not in DTYPE_BYTES:
                raise Refused(
                    Code.TENSOR_DTYPE, f"{name!r:.200} in {file} is {dtype:.20}; a pool takes F32, BF16, F16."
                )
            info = TensorInfo(dtype, tuple(shape), start + begin)
            if begin >= 0 and end - begin == info.nbytes:
                return info
    raise Refused(Code.TENSOR_HEADER, f"{file} declares {name!r:.200} in a way that does not add up.")


def _check_cover(tensors: Mapping[str, TensorInfo], start: int, size: int, file: str) -> None:
    end = start
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if info.offset != end:
            raise Refused(Code.TENSOR_HEADER, f"The tensors of {file} overlap or leave a gap.")
        end += info.nbytes
    if end != size:
        raise Refused(Code.TENSOR_HEADER, f"{file} has {size - end} bytes that belong to no tensor.")
