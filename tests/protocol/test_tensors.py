import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from protocol import tensors
from protocol.adapters import LoraModule
from protocol.errors import Code, Refused
from tests.protocol.samples import arrays, expert
from tests.protocol.strategies import changed_json, many, mutations

library: Any = safetensors  # its deserialize carries no types
EXPERT = expert()
ADAPTER, GATES = tensors.adapter_tensors(EXPERT), tensors.gate_tensors(EXPERT)
A, B = "base_model.model.v.lora_A.weight", "base_model.model.v.lora_B.weight"
VALID = save(arrays(ADAPTER), {"format": "pt"})
HEADER = VALID[8 : 8 + struct.unpack("<Q", VALID[:8])[0]]
DATA = VALID[8 + len(HEADER) :]


def join(header: bytes | dict[str, Any], data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def altered(change: Callable[[dict[str, Any]], object], data: bytes = DATA) -> bytes:
    header = json.loads(HEADER)
    change(header)
    return join(header, data)


def one(entry: Any, data: bytes = bytes(8)) -> bytes:
    return join({"t": entry}, data)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def refusal(folder: Path, content: bytes) -> Refused:
    path = folder / "adapter.safetensors"
    path.write_bytes(content)
    with pytest.raises(Refused) as refused:
        tensors.check(path, ADAPTER)
    assert path.name in refused.value.message
    assert len(refused.value.message) < 600
    return refused.value


# Laws.


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_the_library_writes_is_accepted(tmp_path: Path, dtype: str) -> None:
    spec = expert(dtype=dtype)
    written = arrays(tensors.adapter_tensors(spec))
    path = tmp_path / "adapter.safetensors"
    for metadata in ({"format": "pt"}, None):
        save_file(written, path, metadata)
        found = tensors.check(path, tensors.adapter_tensors(spec))
        for name, info in found.items():
            raw = path.read_bytes()[info.offset : info.offset + info.nbytes]
            assert raw == written[name].tobytes()


def test_bfloat16_is_accepted(tmp_path: Path) -> None:
    expected = tensors.adapter_tensors(expert(dtype="bfloat16"))
    half = save(arrays(tensors.adapter_tensors(expert(dtype="float16"))))
    length = 8 + struct.unpack("<Q", half[:8])[0]
    path = tmp_path / "adapter"
    path.write_bytes(join(half[8:length].replace(b'"F16"', b'"BF16"'), half[length:]))
    assert tensors.check(path, expected).keys() == expected.keys()


def test_gates_are_one_float32_vector_a_module(tmp_path: Path) -> None:
    save_file(arrays(GATES), tmp_path / "gates")
    found = tensors.check(tmp_path / "gates", GATES)
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == {
        "encoder.q.gate": ("F32", (8,)),
        "v.gate": ("F32", (3,)),
    }


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensors") / "file"


@many
@given(mutations(VALID) | changed_json(HEADER).map(join) | mutations(HEADER).map(join))
def test_nothing_is_accepted_that_the_library_refuses_or_reads_differently(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    try:
        found = tensors.read_header(scratch)
    except Refused as refused:
        assert refused.code in {Code.TENSOR_HEADER, Code.TENSOR_DTYPE}  # noqa: PT017 - either outcome is right
        return
    theirs = {name: (info["dtype"], tuple(info["shape"]), info["data"]) for name, info in library.deserialize(content)}
    assert theirs == {
        name: (info.dtype, info.shape, content[info.offset : info.offset + info.nbytes]) for name, info in found.items()
    }


@many
@given(st.integers(0, len(VALID)))
def test_every_truncation_is_refused(scratch: Path, length: int) -> None:
    scratch.write_bytes(VALID[:length])
    if length == len(VALID):
        tensors.check(scratch, ADAPTER)
    else:
        with pytest.raises(Refused) as refused:
            tensors.check(scratch, ADAPTER)
        assert refused.value.code is Code.TENSOR_HEADER


# The catalogue, T1 to T19.

HEADERS = {
    "T1 empty file": b"",
    "T1 seven bytes": bytes(7),
    "T1 no header": bytes(8),
    "T2 header of 2^63 bytes": struct.pack("<Q", 2**63) + HEADER + DATA,
    "T2 header of 2^64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + HEADER + DATA,
    "T3 header longer than the file": struct.pack("<Q", len(VALID)) + HEADER + DATA,
    "T3 header one byte longer than the file": struct.pack("<Q", len(HEADER + DATA) + 1) + HEADER + DATA,
    "T5 overlap": join({"a": entry(), "b": entry(data_offsets=[4, 12])}, bytes(12)),
    "T5 same bytes twice": join({"a": entry(), "b": entry()}, bytes(8)),
    "T5 overlap that adds up": join({"a": entry(), "b": entry(data_offsets=[4, 12])}, bytes(16)),
    "T6 end beyond the shape": join({"a": entry(data_offsets=[0, 12])}, bytes(8)),
    "T6 hole": join({"a": entry(), "b": entry(data_offsets=[12, 20])}, bytes(20)),
    "T6 hole at the start": one(entry(data_offsets=[4, 12]), bytes(12)),
    "T7 trailing bytes": VALID + b"PK\x03\x04",
    "T7 missing bytes": VALID[:-1],
    "T8 overflow of shape": one(entry(shape=[2**32, 2**32], data_offsets=[0, 0])),
    "T8 overflow of shape times width": one(entry(shape=[2**62], data_offsets=[0, 0])),
    "T8 overflow beyond what Python prints": one(entry(shape=[10**4000], data_offsets=[0, 4 * 10**4000])),
    "T9 300,000 empty tensors": join(
        {f"t{number}": entry(shape=[0], data_offsets=[0, 0]) for number in range(300_000)}
    ),
    "T9 one empty tensor": join({"a": entry(), "b": entry(shape=[0], data_offsets=[8, 8])}, bytes(8)),
    "T9 one empty matrix": join({"a": entry(), "b": entry(shape=[3, 0], data_offsets=[8, 8])}, bytes(8)),
    "T10 50 MB of metadata": join({"__metadata__": {"format": "x" * 50_000_000}}),
    "T10 other metadata": altered(lambda header: header.update(__metadata__={"format": "pt", "note": "secret"})),
    "T10 other format": altered(lambda header: header.update(__metadata__={"format": "tf"})),
    "T10 metadata of another type": altered(lambda header: header.update(__metadata__=[])),
    "T10 metadata null": altered(lambda header: header.update(__metadata__=None)),
    "T11 name of 5 MB": join({"x" * 5_000_000: entry()}, bytes(8)),
    "T13 shape of 100 axes": one(entry(shape=[1] * 99 + [2])),
    "T13 shape of three axes": one(entry(shape=[1, 1, 2])),
    "T13 shape of no axis": one(entry(shape=[], data_offsets=[0, 4]), bytes(4)),
    "negative width": one(entry(shape=[-2, -1])),
    "width true": one(entry(shape=[2, True])),
    "width 2.0": one(entry(shape=[2.0])),
    "width of text": one(entry(shape=["2"])),
    "negative offset": one(entry(data_offsets=[-8, 0])),
    "offsets backwards": one(entry(data_offsets=[8, 0])),
    "offset false": one(entry(data_offsets=[False, 8])),
    "offset 8.0": one(entry(data_offsets=[0, 8.0])),
    "three offsets": one(entry(data_offsets=[0, 4, 8])),
    "extra field": one(entry(strides=[1])),
    "no dtype": one({"shape": [2], "data_offsets": [0, 8]}),
    "dtype of another type": one(entry(dtype=1)),
    "entry of another type": one([]),
    "duplicate name": join(HEADER[:-1].rstrip() + b"," + HEADER.strip()[1:]),
    "header is a list": join(b"[]", b""),
    "header is not JSON": join(b"{", b""),
    "header begins with a space": join(b" " + HEADER),
    "header holds NaN": join(HEADER.replace(b'"F32"', b"NaN")),
    "header is deep": join(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_malformed_header_is_refused(tmp_path: Path, case: str) -> None:
    assert refusal(tmp_path, HEADERS[case]).code is Code.TENSOR_HEADER


def test_a_header_of_99_megabytes_is_refused_unread(tmp_path: Path) -> None:  # T4
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(struct.pack("<Q", 99_000_000))
    os.truncate(path, 100_000_000)
    with pytest.raises(Refused, match="header of 99000000 bytes") as refused:
        tensors.check(path, ADAPTER)
    assert refused.value.code is Code.TENSOR_HEADER


@pytest.mark.parametrize(
    "dtype", ["F64", "I8", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "f32", "", "F" * 5000]
)
def test_other_dtypes_are_refused(tmp_path: Path, dtype: str) -> None:  # T12
    error = refusal(tmp_path, altered(lambda header: header[A].update(dtype=dtype)))
    assert error.code is Code.TENSOR_DTYPE
    assert A in error.message


@pytest.mark.parametrize("names", [[B], [A, B], list(ADAPTER)])
def test_missing_tensors_are_refused(tmp_path: Path, names: list[str]) -> None:  # T14
    left = {name: array for name, array in arrays(ADAPTER).items() if name not in names}
    error = refusal(tmp_path, save(left))
    assert error.code is Code.TENSOR_NAMES
    assert min(names) in error.message


@pytest.mark.parametrize(
    "name",
    ["extra", "base_model.model.layers.99.lora_A.weight", "../../etc/passwd", "a\x00b", "\x1b[2J", "v.gate", A + " "],
)
def test_extra_tensors_are_refused(tmp_path: Path, name: str) -> None:  # T15, T16
    error = refusal(tmp_path, save(arrays(ADAPTER) | {name: np.zeros(2, np.float32)}))
    assert error.code is Code.TENSOR_NAMES
    assert error.message.isprintable()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(A, (2, 3), id="T17 A of rank 2"),
        pytest.param(B, (5, 2), id="T17 B of rank 2"),
        pytest.param(A, (3, 1), id="T19 A transposed"),
        pytest.param(B, (1, 5), id="B transposed"),
        pytest.param(A, (3,), id="A flat"),
    ],
)
def test_another_shape_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    error = refusal(tmp_path, save(arrays(ADAPTER) | {name: np.zeros(shape, np.float32)}))
    assert error.code is Code.TENSOR_SHAPE
    assert (
        f"{name} in adapter.safetensors has shape {list(shape)}; expected {list(ADAPTER[name].shape)}." == error.message
    )


@pytest.mark.parametrize("shape", [(4,), (2,), (1, 3), (3, 1)])
def test_a_gate_of_another_width_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:  # T18
    save_file(arrays(GATES) | {"v.gate": np.zeros(shape, np.float32)}, tmp_path / "gates")
    with pytest.raises(Refused, match=r"v\.gate") as refused:
        tensors.check(tmp_path / "gates", GATES)
    assert refused.value.code is Code.TENSOR_SHAPE


def test_a_declared_dtype_is_kept_to(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    save_file(arrays(tensors.adapter_tensors(expert(dtype="float16"))), path)
    with pytest.raises(Refused, match="is F16; expected F32") as refused:
        tensors.check(path, ADAPTER)
    assert refused.value.code is Code.TENSOR_DTYPE


def test_names_and_shapes_follow_from_the_spec() -> None:
    spec = expert(dtype="bfloat16", modules={"enc.0.q": LoraModule(d_in=7, d_out=5, rank=3, alpha=1.0)})
    assert tensors.adapter_tensors(spec) == {
        "base_model.model.enc.0.q.lora_A.weight": tensors.TensorInfo("BF16", (3, 7)),
        "base_model.model.enc.0.q.lora_B.weight": tensors.TensorInfo("BF16", (5, 3)),
    }
    assert tensors.gate_tensors(spec) == {"enc.0.q.gate": tensors.TensorInfo("F32", (7,))}
    assert tensors.TensorInfo("BF16", (5, 3)).nbytes == 30
