"""What anybody may read: the pool, releases, bundles and their files; and what nobody may."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from coordinator.conformance.answer import UnmetError
from coordinator.conformance.case import Case, Need, Play, Row, named
from coordinator.conformance.cases.sessions import NO_DIGESTS
from coordinator.conformance.stage import Stage
from protocol.bundle import ADAPTER_WEIGHTS, FILES, read_manifest
from protocol.documents import read_pool
from protocol.errors import Code
from protocol.release import Release, read_release
from protocol.v1 import catalog_pb2
from protocol.wire.chunks import MAX_CHUNK_BYTES, check_chunk

UNKNOWN = Code.BUNDLE_UNKNOWN


def _pool(stage: Stage) -> None:
    envelope = stage.wire.ask("Catalog/GetPool", catalog_pb2.GetPoolRequest()).envelope
    if read_pool(envelope).digest != stage.pool.digest:
        raise UnmetError("The pool is another than before.")


def _release(stage: Stage, number: int = 0, candidate: str = "") -> Release:
    request = catalog_pb2.GetReleaseRequest(number=number, candidate=candidate)
    return read_release(stage.wire.ask("Catalog/GetRelease", request).envelope, stage.pool)


def _bundle(digest: str) -> Play:
    return lambda stage: stage.wire.ask("Catalog/GetBundle", catalog_pb2.GetBundleRequest(digest=digest))


def _fetch(stage: Stage, sha256: str, offset: int = 0) -> list[Any]:
    return stage.wire.stream("Catalog/Fetch", [catalog_pb2.FetchRequest(sha256=sha256, offset=offset)])


def _content(stage: Stage, sha256: str, size: int, offset: int = 0) -> bytes:
    """Fetch a file, and hold every piece against what pieces must be."""
    content = b""
    for chunk in _fetch(stage, sha256, offset):
        content += check_chunk(chunk, offset=offset + len(content), size=size)
        if len(chunk.data) > MAX_CHUNK_BYTES:
            raise UnmetError("A piece is larger than a mebibyte.")
    return content


def _hidden(call: Callable[[Stage, str], object], *, of_file: bool = False) -> Play:
    """Ask for a bundle that is kept and was not let in."""

    def play(stage: Stage) -> object:
        stage.member("hugh")
        draft = stage.draft("hugh", "hidden")
        # No worker lets that in.
        draft = replace(draft, gates={name: gate.filled(0.0) for name, gate in draft.gates.items()})
        if not stage.begin(draft).receipt:
            stage.submit(draft)
        weights = hashlib.sha256(draft.contents[ADAPTER_WEIGHTS]).hexdigest()
        return call(stage, weights if of_file else draft.digest)

    return play


def _on_its_way(stage: Stage) -> object:
    """Ask for a file that has arrived, of a bundle that is not whole."""
    draft = stage.first("bob")
    stage.begin(draft)
    return _fetch(stage, hashlib.sha256(draft.contents[ADAPTER_WEIGHTS]).hexdigest())


def _released(stage: Stage) -> Release:
    """The newest release, which holds the first bundle; releases follow verdicts in a moment."""
    stage.released(stage.let_in())
    return _release(stage)


def _newest(stage: Stage) -> None:
    newest = _released(stage)
    if stage.let_in().digest not in {expert.bundle for expert in newest.spec.experts}:
        raise UnmetError("The newest release lacks what was let in.")
    if _release(stage, newest.spec.number).digest != newest.digest:
        raise UnmetError("The newest release is another by its number.")
    if _release(stage, candidate=newest.digest).digest != newest.digest:
        raise UnmetError("The newest release is another by its digest.")


def _chain(stage: Stage) -> None:
    release = _released(stage)
    while release.spec.number > 1:
        before = _release(stage, release.spec.number - 1)
        if release.spec.previous != before.digest:
            raise UnmetError(f"Release {release.spec.number} does not name the one before.")
        release = before


def _next_release(stage: Stage) -> object:
    return _release(stage, _released(stage).spec.number + 1000)


def _public(stage: Stage) -> None:
    """What was released anybody may have, byte by byte."""
    draft = stage.let_in()
    _released(stage)
    envelope = stage.wire.ask("Catalog/GetBundle", catalog_pb2.GetBundleRequest(digest=draft.digest)).envelope
    manifest = read_manifest(envelope)
    for name in FILES:
        file = manifest.files[name]
        if _content(stage, file.sha256, file.size) != draft.contents[name]:
            raise UnmetError(f"{name} comes in other bytes than it went.")


def _parts(offset: Callable[[int], int]) -> Play:
    """Fetch a released file from an offset on."""

    def play(stage: Stage) -> None:
        content = stage.let_in().contents[ADAPTER_WEIGHTS]
        _released(stage)
        at = offset(len(content))
        if _content(stage, hashlib.sha256(content).hexdigest(), len(content), at) != content[at:]:
            raise UnmetError("The rest of a file is another than its rest.")

    return play


def _beyond(offset: Callable[[int], int]) -> Play:
    def play(stage: Stage) -> object:
        content = stage.let_in().contents[ADAPTER_WEIGHTS]
        _released(stage)
        return _fetch(stage, hashlib.sha256(content).hexdigest(), offset(len(content)))

    return play


def cases() -> list[Case]:
    """All of them."""
    rows: list[Row] = [("GetPool/signed", _pool, None)]
    rows += [(f"GetBundle/{name}", _bundle(text), UNKNOWN) for name, text in NO_DIGESTS.items()]
    rows += [(f"Fetch/{name}", partial(_fetch, sha256=text), UNKNOWN) for name, text in NO_DIGESTS.items()]
    rows += [
        (f"GetRelease/candidate-{name}", partial(_release, candidate=text),
         Code.CANDIDATE_UNKNOWN if name == "of-nothing" else UNKNOWN)
        for name, text in NO_DIGESTS.items()
        if text  # an empty one is none
    ]  # fmt: skip
    rows += [
        (f"GetRelease/number-{name}", partial(_release, number=number), Code.RELEASE_UNKNOWN)
        for name, number in (
            ("a-million", 1_000_000), ("2^31-1", (1 << 31) - 1), ("2^31", 1 << 31), ("2^63", 1 << 63),
            ("2^64-1", (1 << 64) - 1),
        )
    ]  # fmt: skip
    rows += [
        ("GetBundle/not-let-in", _hidden(lambda stage, digest: _bundle(digest)(stage)), UNKNOWN),
        ("Fetch/not-let-in", _hidden(_fetch, of_file=True), UNKNOWN),
        ("Fetch/on-its-way", _on_its_way, UNKNOWN),
    ]
    released: list[Row] = [
        ("GetRelease/newest", _newest, None),
        ("GetRelease/chain", _chain, None),
        ("GetRelease/one-that-comes", _next_release, Code.RELEASE_UNKNOWN),
        ("GetBundle/released", _public, None),
        ("Fetch/from-the-second-byte", _parts(lambda _: 1), None),
        ("Fetch/the-last-byte", _parts(lambda size: size - 1), None),
        ("Fetch/nothing-at-the-end", _parts(lambda size: size), None),
        ("Fetch/past-the-end", _beyond(lambda size: size + 1), Code.REQUEST_INVALID),
        ("Fetch/at-2^63", _beyond(lambda _: 1 << 63), Code.REQUEST_INVALID),
        ("Fetch/at-2^64-1", _beyond(lambda _: (1 << 64) - 1), Code.REQUEST_INVALID),
    ]
    return named("catalog", rows) + named("catalog", released, Need.WORKER)
