"""safetensors files that are signed, whole and of the right size, but are none, or hold other tensors."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from coordinator.conformance.case import Case, Need, Play, Row, named
from coordinator.conformance.draft import Draft
from coordinator.conformance.stage import Stage
from coordinator.conformance.weights import Blob, Tensors, entries, pack_tensors, with_header
from protocol.bundle import ADAPTER_WEIGHTS, GATES
from protocol.errors import Code

HEADER, NAMES, SHAPE, DTYPE = Code.TENSOR_HEADER, Code.TENSOR_NAMES, Code.TENSOR_SHAPE, Code.TENSOR_DTYPE


class File(NamedTuple):
    """A file to be spoilt: its tensors, and what is in it."""

    tensors: Tensors

    @property
    def header(self) -> dict[str, Any]:
        """Its header, honest."""
        return entries(self.tensors)

    @property
    def data(self) -> list[bytes]:
        """Its tensors' bytes, in order."""
        return [blob.data for blob in self.tensors.values()]

    @property
    def names(self) -> list[str]:
        """Its tensors' names, in order."""
        return list(self.tensors)


Spoiled = Callable[[File], bytes]


class FileFault(NamedTuple):
    """What is wrong with a file, how to write it so, and what must be said of it."""

    name: str
    write: Spoiled
    code: Code


def _header(change: Callable[[dict[str, Any], str], object]) -> Spoiled:
    """Change the header, of whose tensors the first is named, and keep the data."""

    def write(file: File) -> bytes:
        header = file.header
        change(header, file.names[0])
        return with_header(header, file.data)

    return write


def _raw(change: Callable[[bytes], bytes]) -> Spoiled:
    """Change the header's text."""
    return lambda file: with_header(change(json.dumps(file.header).encode()), file.data)


def _length(length: Callable[[int], int]) -> Spoiled:
    """Say that the header has another length than it has."""

    def write(file: File) -> bytes:
        raw = json.dumps(file.header).encode()
        return with_header(raw, file.data, length=length(len(raw)))

    return write


def _axes(change: Callable[[list[int]], list[int]]) -> Spoiled:
    """Declare the first tensor of other axes, with as many bytes where that can be."""
    return _header(lambda header, first: header[first].update(shape=change(header[first]["shape"])))


def _entry(**fields: Any) -> Spoiled:
    """Declare the first tensor otherwise."""
    return _header(lambda header, first: header[first].update(fields))


def _without(field: str) -> Spoiled:
    return _header(lambda header, first: header[first].pop(field))


def _offsets(change: Callable[[list[int]], Any]) -> Spoiled:
    return _header(lambda header, first: header[first].update(data_offsets=change(header[first]["data_offsets"])))


def _beside(name: str, entry: Any, *, count: int = 1) -> Spoiled:
    """Declare further tensors without a byte of their own."""

    def change(header: dict[str, Any], _: str) -> None:
        header.update({name + (str(number) if count > 1 else ""): entry for number in range(count)})

    return _header(change)


def _tensors(change: Callable[[Tensors, str], object]) -> Spoiled:
    """Write other tensors, in a file that is in order and not smaller: what is too small is turned away unread."""

    def write(file: File) -> bytes:
        tensors = dict(file.tensors)
        change(tensors, file.names[0])
        missing = len(pack_tensors(file.tensors)) - len(pack_tensors(tensors))
        header = json.dumps(entries(tensors), separators=(",", ":")).encode()
        return with_header(header + b" " * max(missing, 0), [blob.data for blob in tensors.values()])

    return write


def _renamed(name: Callable[[str], str]) -> Spoiled:
    return _tensors(lambda tensors, first: tensors.update({name(first): tensors.pop(first)}))


def _reshaped(shape: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Spoiled:
    return _tensors(
        lambda tensors, first: tensors.update({first: tensors[first]._replace(shape=shape(tensors[first].shape))})
    )


def _cast(code: str, width: int) -> Spoiled:
    """Write the first tensor in numbers of another width, all of them zero but for the form."""

    def change(tensors: Tensors, first: str) -> None:
        count = len(tensors[first].data) // 4
        tensors[first] = Blob(code, tensors[first].shape, bytes(count * width))

    return _tensors(change)


def _swapped_entries(header: dict[str, Any], first: str) -> None:
    """Have two tensors lie on each other."""
    other = next(name for name in header if name not in (first, "__metadata__"))
    begin = header[first]["data_offsets"][0]
    size = header[other]["data_offsets"][1] - header[other]["data_offsets"][0]
    header[other]["data_offsets"] = [begin, begin + size]


def _gap(file: File) -> bytes:
    """Leave four bytes between the first tensor and the rest."""
    header, names = file.header, file.names
    for name in names[1:]:
        header[name]["data_offsets"] = [at + 4 for at in header[name]["data_offsets"]]
    return with_header(header, [file.data[0], bytes(4), *file.data[1:]])


def _one_row(blob: Blob) -> Blob:
    return Blob("F32", (1, blob.shape[1]), blob.data[: 4 * blob.shape[1]])


_EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
STRUCTURE = [
    FileFault("length-2^63", _length(lambda _: 1 << 63), HEADER),
    FileFault("length-2^64-1", _length(lambda _: (1 << 64) - 1), HEADER),
    FileFault("length-above-a-mebibyte", _length(lambda _: (1 << 20) + 1), HEADER),
    FileFault("length-beyond-the-file", _length(lambda size: size + (1 << 19)), HEADER),
    FileFault("length-zero", _length(lambda _: 0), HEADER),
    FileFault("length-a-byte-short", _length(lambda size: size - 1), HEADER),
    FileFault("length-a-byte-long", _length(lambda size: size + 1), HEADER),
    FileFault("all-zeros", lambda file: bytes(len(pack_tensors(file.tensors))), HEADER),
    FileFault("pickle", lambda file: b"\x80\x02}q\x00." + bytes(len(pack_tensors(file.tensors))), HEADER),
    FileFault("zip", lambda file: b"PK\x03\x04" + bytes(len(pack_tensors(file.tensors))), HEADER),
    FileFault("gguf", lambda file: b"GGUF" + struct.pack("<I", 3) + bytes(len(pack_tensors(file.tensors))), HEADER),
    FileFault("header-no-utf-8", _raw(lambda raw: raw.replace(b"dtype", b"d\xffype")), HEADER),
    FileFault("header-cut", _raw(lambda raw: raw[:-1]), HEADER),
    FileFault("header-a-list", _raw(lambda raw: b"[" + raw + b"]"), HEADER),
    FileFault("header-a-text", _raw(lambda _: b'"header"'), HEADER),
    FileFault("header-empty", _raw(lambda _: b"{}"), HEADER),
    FileFault("header-leading-space", _raw(lambda raw: b" " + raw), HEADER),
    FileFault("header-byte-order-mark", _raw(lambda raw: b"\xef\xbb\xbf" + raw), HEADER),
    FileFault("header-trailing-nul", _raw(lambda raw: raw + b"\0"), HEADER),
    FileFault("header-key-twice", _raw(lambda raw: b'{"__metadata__":{},' + raw[1:]), HEADER),
    FileFault("header-NaN", _raw(lambda raw: raw[:-1] + b',"x":NaN}'), HEADER),
    FileFault("header-depth-1000", _raw(lambda raw: raw[:-1] + b',"x":' + b"[" * 1000 + b"]" * 1000 + b"}"), HEADER),
    FileFault("metadata-of-another-kind", _header(
        lambda header, _: header.update(__metadata__={"format": "tf"})), HEADER),
    FileFault("metadata-smuggles", _header(
        lambda header, _: header.update(__metadata__={"format": "pt", "row": "secret"})), HEADER),
    FileFault("metadata-large", _header(lambda header, _: header.update(__metadata__={"x": "y" * 200_000})), HEADER),
    FileFault("metadata-a-list", _header(lambda header, _: header.update(__metadata__=[])), HEADER),
    FileFault("metadata-a-number", _header(lambda header, _: header.update(__metadata__=7)), HEADER),
    FileFault("entry-null", _header(lambda header, first: header.update({first: None})), HEADER),
    FileFault("entry-a-list", _header(lambda header, first: header.update({first: []})), HEADER),
    FileFault("entry-with-more", _entry(quantised=True), HEADER),
    FileFault("dtype-left-out", _without("dtype"), HEADER),
    FileFault("dtype-a-number", _entry(dtype=7), HEADER),
    FileFault("shape-left-out", _without("shape"), HEADER),
    FileFault("shape-a-number", _entry(shape=7), HEADER),
    FileFault("shape-of-no-axes", _entry(shape=[]), HEADER),
    FileFault("shape-of-100-axes", _entry(shape=[1] * 100), HEADER),
    FileFault("shape-of-an-axis-more", _axes(lambda shape: [*shape, *[1] * (3 - len(shape))]), HEADER),
    FileFault("shape-with-zero", _entry(shape=[0, 8]), HEADER),
    FileFault("shape-negative", _axes(lambda shape: [-width for width in shape]), HEADER),
    FileFault("shape-of-truth", _entry(shape=[True, 8]), HEADER),
    FileFault("shape-of-floats", _entry(shape=[2.0, 8.0]), HEADER),
    FileFault("shape-of-texts", _entry(shape=["2", "8"]), HEADER),
    FileFault("shape-that-overflows", _entry(shape=[1 << 31, 1 << 33]), HEADER),
    FileFault("shape-beyond-2^53", _entry(shape=[1 << 60, 1]), HEADER),
    FileFault("offsets-left-out", _without("data_offsets"), HEADER),
    FileFault("offsets-alone", _offsets(lambda at: at[:1]), HEADER),
    FileFault("offsets-of-three", _offsets(lambda at: [*at, 0]), HEADER),
    FileFault("offsets-negative", _offsets(lambda at: [at[0] - 4, at[1] - 4]), HEADER),
    FileFault("offsets-the-other-way-round", _offsets(lambda at: at[::-1]), HEADER),
    FileFault("offsets-of-floats", _offsets(lambda at: [float(x) for x in at]), HEADER),
    FileFault("offsets-of-truth", _offsets(lambda at: [False, at[1]]), HEADER),
    FileFault("offsets-a-number-short", _offsets(lambda at: [at[0], at[1] - 4]), HEADER),
    FileFault("offsets-past-the-end", _offsets(lambda at: [at[0] + (1 << 40), at[1] + (1 << 40)]), HEADER),
    FileFault("tensors-on-each-other", _header(_swapped_entries), HEADER),
    FileFault("gap", _gap, HEADER),
    FileFault("trailing-byte", lambda file: pack_tensors(file.tensors) + b"\0", HEADER),
    FileFault("trailing-zip", lambda file: pack_tensors(file.tensors) + b"PK\x05\x06" + bytes(18), HEADER),
    FileFault("empty-tensor-beside", _beside("x", _EMPTY), HEADER),
    FileFault("10000-empty-tensors-beside", _beside("x", _EMPTY, count=10_000), HEADER),
    FileFault("long-name-beside", _beside("x" * 200_000, _EMPTY), HEADER),
    *(FileFault(f"dtype-{code}", _cast(code, width), DTYPE)
      for code, width in (("F64", 8), ("I64", 8), ("I8", 1), ("U8", 1), ("BOOL", 1), ("F8_E4M3", 1), ("f32", 4))),
    FileFault("another-dtype-than-declared", _cast("F16", 2), DTYPE),
]  # fmt: skip
_EXTRA = Blob("F32", (4,), bytes(16))
CONTENT = [
    FileFault("tensor-left-out", _tensors(lambda tensors, first: tensors.pop(first)), NAMES),
    FileFault("tensor-beside", _tensors(lambda tensors, _: tensors.update(x=_EXTRA)), NAMES),
    FileFault("tensor-of-another-layer", _renamed(lambda name: name.replace(".0.", ".99.", 1) + ".99"), NAMES),
    FileFault("tensor-upper-case", _renamed(str.upper), NAMES),
    FileFault("tensor-without-name", _renamed(lambda _: ""), NAMES),
    FileFault("tensor-upwards", _renamed(lambda name: f"../{name}"), NAMES),
    FileFault("tensor-with-nul", _renamed(lambda name: f"{name}\0"), NAMES),
    FileFault("tensor-with-escape", _renamed(lambda name: f"{name}\x1b[2J"), NAMES),
    FileFault("tensor-with-line-break", _renamed(lambda name: f"{name}\n"), NAMES),
    FileFault("tensor-with-zero-width", _renamed(lambda name: f"{name}\u200b"), NAMES),
]
ADAPTER = [
    FileFault("transposed", _reshaped(lambda shape: shape[::-1]), SHAPE),
    FileFault("flat", _reshaped(lambda shape: (shape[0] * shape[1],)), SHAPE),
    FileFault("of-another-prefix", _renamed(lambda name: name.removeprefix("base_model.model.")), NAMES),
    FileFault("of-another-rank", _tensors(
        lambda tensors, first: tensors.update({first: _one_row(tensors[first])})), SHAPE),
    FileFault("with-a-bias", _tensors(lambda tensors, first: tensors.update({f"{first}.bias": _EXTRA})), NAMES),
]  # fmt: skip
GATE = [
    FileFault("of-two-axes", _reshaped(lambda shape: (1, *shape)), SHAPE),
    FileFault("a-number-short", _tensors(lambda tensors, first: tensors.update(
        {first: Blob("F32", (tensors[first].shape[0] - 1,), tensors[first].data[:-4])})), SHAPE),
    FileFault("half-precision", _cast("BF16", 2), DTYPE),
    FileFault("with-a-mean-that-is-not-declared", _tensors(
        lambda tensors, first: tensors.update({f"{first.removesuffix('.gate')}.mean": tensors[first]})), NAMES),
]  # fmt: skip
# The two files are read by one reader here, but need not elsewhere: the gates' gets every fifth structural fault.
FAULTS: dict[str, list[FileFault]] = {
    ADAPTER_WEIGHTS: [*STRUCTURE, *CONTENT, *ADAPTER],
    GATES: [*STRUCTURE[::5], *CONTENT[:3], *GATE],
}


def spoiled(draft: Draft, name: str, write: Spoiled) -> Draft:
    """Put another file in a bundle's place, and sign it."""
    tensors = draft.tensors if name == ADAPTER_WEIGHTS else draft.gates
    return replace(draft, files={name: write(File(tensors))})


def _judged(name: str, fault: FileFault) -> Play:
    def play(stage: Stage) -> object:
        return stage.judged(spoiled(stage.draft("ada", label(name, fault.name)), name, fault.write))

    return play


def label(file: str, fault: str) -> str:
    """Name a bundle after what is wrong with it."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in fault.lower()).strip("-")
    return f"{file[:2]}-{plain}"[:60].rstrip("-")


def cases() -> list[Case]:
    """All of them."""
    rows: list[Row] = [
        (f"{name.partition('.')[0]}/{fault.name}", _judged(name, fault), fault.code)
        for name, faults in FAULTS.items()
        for fault in faults
    ]
    return named("tensor", rows, Need.WORKER)
