"""Writes the golden corpora: documents and files that every reader must take, and such as it must refuse, with codes.

One line of JSON each: `name`, `code` (empty for what must be taken), and `text`, or `base64` where it is no text.
"""

import base64
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from coordinator.conformance.cases import enrolments, envelopes, facts, statements, tensors
from coordinator.conformance.draft import Unsigned
from coordinator.conformance.fault import Flaw
from coordinator.conformance.weights import pack_tensors
from protocol.bundle import ADAPTER_WEIGHTS, GATES
from protocol.errors import Code
from tests.conformance import samples

FOLDER = Path(__file__).parent / "golden"
_MOST_BYTES = 12_000
"""Larger ones, which are refused for their size or take a server long, are left to the suite."""


class Entry(NamedTuple):
    """One document or file."""

    name: str
    code: str
    content: bytes

    def line(self) -> str:
        """Write it."""
        try:
            content = {"text": self.content.decode()}
        except UnicodeDecodeError:
            content = {"base64": base64.b64encode(self.content).decode()}
        return json.dumps({"name": self.name, "code": self.code, **content}, sort_keys=True)

    @classmethod
    def read(cls, line: str) -> "Entry":
        """Inverse of `line`."""
        fields = json.loads(line)
        content = fields["text"].encode() if "text" in fields else base64.b64decode(fields["base64"])
        return cls(fields["name"], fields["code"], content)


def _spoilt(source: Unsigned, **faults: Iterable[Flaw]) -> Iterator[Entry]:
    for subject, each in faults.items():
        for fault in each:
            yield Entry(f"{subject}/{fault.name}", fault.code.name, fault.spoil(source))


def _refused_enrolments() -> Iterator[Entry]:
    # What the pool and the registry say comes after what reading says.
    read = [fault for fault in enrolments.FAULTS if fault.code not in (Code.WRONG_POOL, Code.NAME_MISLEADING)]
    return _spoilt(samples.enrolment(), **_signed_faults(Code.BAD_SIGNATURE), enrolment=read)


def _refused_bundles() -> Iterator[Entry]:
    return _spoilt(samples.draft().source, **_signed_faults(Code.SIGNER_MISMATCH), fact=facts.FAULTS)


def _signed_faults(foreign: Code) -> dict[str, list[Flaw]]:
    """What is wrong with an envelope, whatever it says; `foreign` is what is said of another signer."""
    others = [Flaw(name, spoil, foreign) for name, spoil in envelopes.FOREIGN]
    signature = [*envelopes.SIGNATURE_FAULTS, *others]
    return {"envelope": envelopes.ENVELOPE_FAULTS, "signature": signature, "statement": statements.FAULTS}


def _refused_files(name: str) -> Iterator[Entry]:
    draft = samples.draft()
    honest = tensors.File(draft.tensors if name == ADAPTER_WEIGHTS else draft.gates)
    for fault in tensors.FAULTS[name]:
        yield Entry(fault.name, fault.code.name, fault.write(honest))


def _taken_enrolments() -> Iterator[Entry]:
    names = {"plain": "ada", "of-one-letter": "a", "of-a-digit": "7", "of-64-letters": "x" * 64, "of-all": "a.b_c-d..e"}
    for what, name in names.items():
        yield Entry(what, "", _signed(samples.enrolment(name=name)))


def _taken_bundles() -> Iterator[Entry]:
    low = {"epsilon": 1.0, "delta": 1e-6, "clip": 1.0}
    drafts = {
        "plain": samples.draft(),
        "private": samples.draft(privacy=low),
        "joint": samples.draft(joint=True),
        "with-means": samples.draft(statistics={"means": {"modules": None, "noise": None}, "centroid": None}),
        "with-a-centroid": samples.draft(statistics={"means": None, "centroid": {"embedding": None, "width": 8}}),
        "that-supersedes": samples.draft(supersedes="a" * 64),
        "license-of-100-letters": samples.draft(license="ö" * 100),
        "without-tool": samples.draft(tool=""),
        "half-precision": samples.draft(dtype="bfloat16"),
        "rslora": samples.of_kind("rslora"),
        "dora": samples.of_kind("dora"),
        "bottleneck": samples.of_kind("bottleneck", activation="gelu"),
    }
    for what, draft in drafts.items():
        yield Entry(what, "", draft.envelope)


def _taken_files(name: str) -> Iterator[Entry]:
    draft = samples.draft()
    parts = draft.tensors if name == ADAPTER_WEIGHTS else draft.gates
    yield Entry("plain", "", pack_tensors(parts))
    yield Entry("in-another-order", "", pack_tensors(dict(reversed(parts.items()))))


def _signed(source: Unsigned) -> bytes:
    return source.signer.sign(source.payload)


CORPORA: dict[str, Callable[[], Iterator[Entry]]] = {
    "accept/enrolments": _taken_enrolments,
    "accept/bundles": _taken_bundles,
    "accept/weights": lambda: _taken_files(ADAPTER_WEIGHTS),
    "accept/gates": lambda: _taken_files(GATES),
    "reject/enrolments": _refused_enrolments,
    "reject/bundles": _refused_bundles,
    "reject/weights": lambda: _refused_files(ADAPTER_WEIGHTS),
    "reject/gates": lambda: _refused_files(GATES),
}


def make(corpus: str) -> list[Entry]:
    """Make a corpus."""
    return [entry for entry in CORPORA[corpus]() if len(entry.content) <= _MOST_BYTES]


def path_of(corpus: str) -> Path:
    """Where a corpus lies."""
    return FOLDER / f"{corpus}.jsonl.gz"


def write(corpus: str, entries: Iterable[Entry]) -> None:
    """Write a corpus; equal entries give equal bytes."""
    path_of(corpus).parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{entry.line()}\n" for entry in entries)
    path_of(corpus).write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def read(corpus: str) -> list[Entry]:
    """Read a corpus that was written."""
    return [Entry.read(line) for line in gzip.decompress(path_of(corpus).read_bytes()).decode().splitlines()]
