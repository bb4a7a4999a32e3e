"""What is fuzzed: each parser of what strangers send, and what its fuzzing begins with.

Most of it is read only once it is signed, so what is fuzzed is the statement, and keys that protect nothing sign it:
otherwise no byte would come past the signature.
"""

import gzip
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from client.training.imported_adapter import read_adapter
from protocol import release, tensors
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_manifest
from protocol.documents import RECEIPT_TYPE, Receipt, read_enrolment, read_pool, read_receipt, read_rotation, sign
from protocol.documents import sign_rotation as rotate
from protocol.errors import Refused
from protocol.files import strict_json
from protocol.log.checkpoint import read_checkpoint, sign_checkpoint
from protocol.log.leaf import LogLeaf, read_leaf
from protocol.log.note import Note, sign_note
from protocol.roles import metadata
from protocol.roles.metadata import Keys
from protocol.signing import Identity, Signed
from router.query.limits import DEFAULT_ALLOWANCE
from router.serving.http.failures import Misplaced
from router.serving.http.question import understand
from router.serving.http.requests import ChatRequest, CompletionRequest, Wanted, read_body
from tests.conformance.corpus import FOLDER, Entry
from tests.conformance.samples import CONTRIBUTOR, POOL, draft
from tests.protocol.samples import COORDINATOR, CREATED, STRANGER
from tests.protocol.samples import release as release_of

NOW = datetime(2026, 12, 1, tzinfo=UTC)
Reader = Callable[[bytes], object]


class Parser(NamedTuple):
    """Readers of one kind of bytes."""

    readers: dict[str, Reader]
    seeds: Callable[[], Iterable[bytes]]

    def try_all(self, raw: bytes) -> list[str]:
        """Have all read it, and name those who take it; anything but a refusal passes through."""
        taken = []
        for name, reader in self.readers.items():
            with suppress(Refused):
                reader(raw)
                taken.append(name)
        return taken


def _golden(kind: str) -> list[bytes]:
    """Contents of one kind of the golden corpora."""
    files = [FOLDER / verdict / f"{kind}.jsonl.gz" for verdict in ("accept", "reject")]
    lines = [line for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]
    return [Entry.read(line.decode()).content for line in lines]


def _payloads(*envelopes: bytes) -> list[bytes]:
    """The statements in envelopes, as far as there is one."""
    found = []
    for envelope in envelopes:
        with suppress(Refused):
            found.append(Signed.parse(envelope).payload)
    return found


def _signed(by: Identity, reader: Reader) -> Reader:
    """Have a statement read that is signed."""
    return lambda payload: reader(by.sign(payload))


def _rotation(payload: bytes) -> object:
    return read_rotation(STRANGER.countersign(Signed.parse(CONTRIBUTOR.sign(payload))))


@cache
def _scratch() -> Path:
    """A folder with an adapter in it, in memory where that is possible."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    (folder / ADAPTER_WEIGHTS).write_bytes(draft().contents[ADAPTER_WEIGHTS])
    return folder


def _header(raw: bytes) -> object:
    path = _scratch() / "header.safetensors"
    path.write_bytes(raw)
    return tensors.read_header(path)


def _config(raw: bytes) -> object:
    (_scratch() / ADAPTER_CONFIG).write_bytes(raw)
    return read_adapter(str(_scratch()), POOL.spec)


def _note(raw: bytes) -> object:
    """Read a checkpoint whose text is what is fuzzed."""
    text = raw.decode(errors="replace")
    return read_checkpoint(sign_note(text, f"greylag.org/log/{POOL.digest}", COORDINATOR).encode(), POOL)


def _documents() -> list[bytes]:
    receipt = Receipt(pool=POOL.digest, bundle="4" * 64, contributor="5" * 64, sequence=1, received=CREATED)
    signed = sign(RECEIPT_TYPE, {"bundle": receipt.bundle}, receipt, COORDINATOR)
    return _payloads(*_golden("enrolments"), signed, rotate(POOL, CONTRIBUTOR, STRANGER, NOW))


def _releases() -> list[bytes]:
    spec = release_of(pool=POOL.digest)
    both = release.sign_release(spec, COORDINATOR), release.sign_candidate(spec, COORDINATOR)
    return _payloads(*(each.envelope for each in both))


def _metadata() -> list[bytes]:
    targets = metadata.make_targets(release.sign_release(release_of(pool=POOL.digest), COORDINATOR))
    raw = targets.to_bytes()
    snapshot = metadata.make_snapshot(1, raw, now=NOW)
    stamp = metadata.make_timestamp(1, snapshot.to_bytes(), now=NOW)
    keys = Keys((COORDINATOR.public, STRANGER.public), 2)
    named = dict.fromkeys((Root.type, Targets.type, Snapshot.type, Timestamp.type), keys)
    return [raw, snapshot.to_bytes(), stamp.to_bytes(), metadata.make_root(POOL, 1, named, now=NOW).to_bytes()]


def _log() -> list[bytes]:
    note = sign_checkpoint(POOL, 3, bytes(32), COORDINATOR).note
    leaf = LogLeaf(number=1, at=CREATED, kind="bundle", subject="4" * 64, step="received", actor="contributor", code="")
    return [note.encode(), note.text.encode(), leaf.encode()]


def _question(kind: type[Wanted]) -> Reader:
    """Read the body of a request over HTTP, and understand it."""

    def read(raw: bytes) -> object:
        try:
            return understand(read_body(kind, raw), "notes", DEFAULT_ALLOWANCE)
        except Misplaced as misplaced:
            raise misplaced.error from misplaced

    return read


def _bodies() -> list[bytes]:
    shared = {
        "model": "notes@7/expert:ada/notes", "n": 2, "max_tokens": 9, "temperature": 1.5, "top_p": 0.5, "seed": -3,
        "stop": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}, "tools": [],
        "greylag": {"k": 1, "temperature": 2, "allow": ["a"], "deny": [], "explain": "shares"},
    }  # fmt: skip
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "logprobs": True}
    prompts: tuple[object, ...] = ("a", ["a", "b"], [1, 2], [[1], [2, 3]])
    kinds = [chat, *({"prompt": prompt, "logprobs": 3} for prompt in prompts)]
    return [strict_json.dumps(shared | kind) for kind in kinds]


PARSERS = {
    "envelope": Parser(
        {"envelope": Signed.parse, "bundle": read_manifest, "enrolment": read_enrolment},
        lambda: [*_golden("bundles"), *_golden("enrolments")],
    ),
    "header": Parser({"header": _header}, lambda: [*_golden("weights"), *_golden("gates")]),
    "manifest": Parser({"manifest": _signed(CONTRIBUTOR, read_manifest)}, lambda: _payloads(*_golden("bundles"))),
    "documents": Parser(
        {
            "enrolment": _signed(CONTRIBUTOR, read_enrolment),
            "receipt": _signed(COORDINATOR, lambda raw: read_receipt(raw, POOL)),
            "rotation": _rotation,
        },
        _documents,
    ),
    "config": Parser({"config": _config}, lambda: [draft().contents[ADAPTER_CONFIG]]),
    "pool": Parser({"pool": _signed(COORDINATOR, read_pool)}, lambda: _payloads(POOL.envelope)),
    "release": Parser(
        {
            "release": _signed(COORDINATOR, lambda raw: release.read_release(raw, POOL)),
            "candidate": _signed(COORDINATOR, lambda raw: release.read_candidate(raw, POOL)),
        },
        _releases,
    ),
    "metadata": Parser(
        {
            "root": lambda raw: metadata.read(raw, Root),
            "targets": lambda raw: metadata.read(raw, Targets),
            "snapshot": lambda raw: metadata.read(raw, Snapshot),
            "timestamp": lambda raw: metadata.read(raw, Timestamp),
        },
        _metadata,
    ),
    "http": Parser({"chat": _question(ChatRequest), "text": _question(CompletionRequest)}, _bodies),
    "log": Parser(
        {"note": Note.parse, "checkpoint": lambda raw: read_checkpoint(raw, POOL), "text": _note, "leaf": read_leaf},
        _log,
    ),
}
