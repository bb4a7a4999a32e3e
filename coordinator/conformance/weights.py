"""safetensors files as bytes, written without the library, which would not write what must be refused."""

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from protocol.tensors import TensorInfo

SPREAD = 0.02
"""Standard deviation of honest weights: enough to be an expert, too little to spoil a model."""


class Blob(NamedTuple):
    """One tensor of a file."""

    dtype: str
    """safetensors' code."""
    shape: tuple[int, ...]
    data: bytes

    def filled(self, value: float, *places: int) -> "Blob":
        """The same with one number at some places, or at all; of a float32 tensor."""
        numbers = np.frombuffer(self.data, "<f4").copy()
        numbers[list(places) if places else slice(None)] = value
        return self._replace(data=numbers.tobytes())

    def times(self, factor: float) -> "Blob":
        """The same, multiplied; of a float32 tensor."""
        return self._replace(data=(np.frombuffer(self.data, "<f4") * np.float32(factor)).tobytes())


Tensors = dict[str, Blob]


def draw_tensors(expected: Mapping[str, TensorInfo], draw: np.random.Generator) -> Tensors:
    """Draw float32 tensors of the shapes that a bundle must hold."""
    return {
        name: Blob("F32", info.shape, draw.normal(0, SPREAD, info.shape).astype("<f4").tobytes())
        for name, info in expected.items()
    }


def entries(tensors: Mapping[str, Blob]) -> dict[str, Any]:
    """Write the header of a file that holds tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, blob in tensors.items():
        offsets = [end, end + len(blob.data)]
        header[name] = {"dtype": blob.dtype, "shape": list(blob.shape), "data_offsets": offsets}
        end = offsets[1]
    return header


def pack_tensors(tensors: Mapping[str, Blob]) -> bytes:
    """Write a file."""
    return with_header(entries(tensors), (blob.data for blob in tensors.values()))


def with_header(header: Any, data: Iterable[bytes], *, length: int | None = None) -> bytes:
    """Put any header, a value or bytes, before any data; `length` says another length of it than it has."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + b"".join(data)
