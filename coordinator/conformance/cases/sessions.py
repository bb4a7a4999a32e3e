"""Uploads: who may continue one, what may be sent, what is kept when it breaks, and when it is whole."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from coordinator.conformance.answer import AnsweredError, UnmetError
from coordinator.conformance.case import Case, Play, Row, named
from coordinator.conformance.stage import Stage, chunk, start
from protocol.bundle import ADAPTER_WEIGHTS, CARD, FILES, GATES, SPEC
from protocol.errors import Code
from protocol.v1 import intake_pb2

UNKNOWN, DENIED = Code.SESSION_UNKNOWN, Code.SESSION_DENIED
STATES = frozenset({"received", "verified", "quarantined", "accepted", "refused", "released"})
NO_DIGESTS = {
    "empty": "", "word": "x", "short": "a" * 63, "long": "a" * 65, "upper-case": "A" * 64, "upwards": "../" * 21 + "x",
    "nul": "a" * 63 + "\0", "escape": "\x1b[2J", "line-break": "a" * 64 + "\n", "of-10000-letters": "a" * 10_000,
    "sql": "' OR 1=1 --", "of-nothing": "a" * 64,
}  # fmt: skip
NO_FILES = {
    "envelope": "bundle.dsse.json", "upwards": "../x", "absolute": "/etc/passwd", "empty": "", "case": "readme.md",
    "code": "modeling.py", "pickle": "adapter_model.bin", "nul": f"{CARD}\0", "escape": "\x1b[2J", "dot": ".",
    "hidden": ".spec.json.tmp",
}  # fmt: skip
_PARALLEL = 8


def _put(stage: Stage, *requests: Any) -> Any:
    return stage.wire.stream("Intake/Put", requests)[0].offset


def _ask(verb: str, **fields: Any) -> Play:
    requests = {"Commit": intake_pb2.CommitRequest, "Status": intake_pb2.StatusRequest}
    return lambda stage: stage.wire.ask(f"Intake/{verb}", requests[verb](**fields))


def _start(digest: str) -> Play:
    return lambda stage: _put(
        stage, intake_pb2.PutRequest(start=intake_pb2.PutStart(digest=digest, token=b"x", name=CARD))
    )


def _put_file(stage: Stage, name: str) -> Any:
    return _put(stage, start(_open(stage), name))


def _open(stage: Stage, owner: str = "bob") -> Any:
    """An upload that has begun, and that no case ends."""
    return stage.begin(stage.first(owner))


def _offset(begun: Any, name: str) -> int:
    return next(missing.offset for missing in begun.missing if missing.name == name)


def _with_token(change: Callable[[Stage, bytes], bytes], verb: str) -> Play:
    """Continue an upload with another token."""

    def play(stage: Stage) -> object:
        begun = _open(stage)
        begun.token = change(stage, begun.token)
        return stage.commit(begun) if verb == "Commit" else _put(stage, start(begun, CARD))

    return play


TOKENS: dict[str, Callable[[Stage, bytes], bytes]] = {
    "empty": lambda *_: b"",
    "cut": lambda _, token: token[:-1],
    "longer": lambda _, token: token + b"\0",
    "flipped": lambda _, token: token[:-1] + bytes([token[-1] ^ 1]),
    "zeros": lambda _, token: bytes(len(token)),
    "of-another": lambda stage, _: _open(stage, "carol").token,
}


def _pieces(make: Callable[[Any, int, bytes], list[Any]]) -> Play:
    """Send to an open upload what is made of it, of where its weights go on, and of what follows there."""

    def play(stage: Stage) -> object:
        begun, content = _open(stage), stage.first("bob").contents[ADAPTER_WEIGHTS]
        at = _offset(begun, ADAPTER_WEIGHTS)
        return _put(stage, *make(begun, at, content[at:]))

    return play


def _first(begun: Any) -> Any:
    return start(begun, ADAPTER_WEIGHTS)


PIECES: list[Row] = [
    ("without-a-start", _pieces(lambda _, at, rest: [chunk(at, rest)]), Code.BAD_WIRE),
    ("with-an-empty-start", _pieces(lambda *_: [intake_pb2.PutRequest()]), Code.BAD_WIRE),
    ("with-two-starts", _pieces(lambda begun, *_: [_first(begun), _first(begun)]), Code.BAD_WIRE),
    ("with-an-empty-message", _pieces(lambda begun, *_: [_first(begun), b""]), Code.BAD_WIRE),
    ("with-garbage", _pieces(lambda begun, *_: [_first(begun), b"\xff\xff\xff"]), Code.BAD_WIRE),
    ("with-an-empty-chunk", _pieces(lambda begun, at, _: [_first(begun), chunk(at, b"")]), Code.BAD_WIRE),
    ("a-byte-ahead", _pieces(lambda begun, at, rest: [_first(begun), chunk(at + 1, rest[1:])]), Code.OFFSET_MISMATCH),
    ("far-ahead", _pieces(lambda begun, _, rest: [_first(begun), chunk(1 << 63, rest)]), Code.OFFSET_MISMATCH),
    ("at-the-last-offset", _pieces(
        lambda begun, _, rest: [_first(begun), chunk((1 << 64) - 1, rest)]), Code.OFFSET_MISMATCH),
    ("of-another-checksum", _pieces(lambda begun, at, rest: [_first(begun), chunk(at, rest, 1)]), Code.CHUNK_CORRUPT),
    ("of-the-checksum-inverted", _pieces(
        lambda begun, at, rest: [_first(begun), chunk(at, rest, 0xFFFFFFFF ^ chunk(at, rest).chunk.crc32)]),
        Code.CHUNK_CORRUPT),
    ("a-byte-too-much", _pieces(
        lambda begun, at, rest: [_first(begun), chunk(at, rest + b"\0")]), Code.SIZE_MISMATCH),
    ("a-chunk-of-a-mebibyte-and-a-byte", _pieces(
        lambda begun, at, _: [_first(begun), chunk(at, bytes((1 << 20) + 1))]), Code.SIZE_MISMATCH),
    ("with-a-start-alone", _pieces(lambda begun, *_: [_first(begun)]), None),
]  # fmt: skip


def _digest_mismatch(name: str) -> Play:
    """Send a file with one byte changed; it must be refused, and be asked for anew from its first byte."""

    def play(stage: Stage) -> object:
        draft = stage.first(f"dora{FILES.index(name)}")
        begun = stage.begin(draft)
        wrong = bytearray(draft.contents[name])
        wrong[len(wrong) // 2] ^= 1
        stage.put(draft, begun, **{name.partition(".")[0]: bytes(wrong)})
        try:
            return stage.commit(begun)
        except AnsweredError:
            if [(missing.name, missing.offset) for missing in stage.begin(draft).missing] != [(name, 0)]:
                raise UnmetError("After wrong bytes, other files are missing than the wrong one from zero.") from None
            raise

    return play


def _mended(stage: Stage) -> None:
    """What was sent anew is kept; and kept once, however often it is committed."""
    draft = stage.first("dora0")
    begun = stage.begin(draft)
    if begun.receipt:
        raise UnmetError("A bundle is kept that nobody committed.")
    stage.put(draft, begun)
    receipt = stage.commit(begun)
    stage.check_receipt(draft, receipt)
    again = stage.begin(draft)
    if stage.commit(begun) != receipt or again.receipt != receipt or again.token or again.missing:
        raise UnmetError("A bundle that is kept already was not answered with its one receipt.")
    if stage.status(draft.digest).state not in STATES:
        raise UnmetError("A bundle that is kept has no state.")


def _commit_early(stage: Stage) -> object:
    return stage.commit(_open(stage))


def _commit_a_byte_short(stage: Stage) -> None:
    draft = stage.first("carol")
    begun = stage.begin(draft)
    left = draft.contents[GATES][: len(draft.contents[GATES]) - 1]
    stage.put(replace(draft, files={GATES: left}), begun)
    stage.refuses(Code.MISSING_RANGES, stage.commit, begun)
    again = stage.begin(draft)
    if [(missing.name, missing.offset) for missing in again.missing] != [(GATES, len(left))]:
        raise UnmetError("What is missing is not the one byte.")


def _broken(stage: Stage) -> None:
    """Of a stream that breaks, what arrived is kept."""
    draft = stage.first("rita")
    begun, content = stage.begin(draft), draft.contents[SPEC]
    half = len(content) // 2
    bad = [start(begun, SPEC), chunk(0, content[:half]), chunk(half, content[half:], 1)]
    stage.refuses(Code.CHUNK_CORRUPT, _put, stage, *bad)
    again = stage.begin(draft)
    if again.token != begun.token or _offset(again, SPEC) != half:
        raise UnmetError("An upload did not continue where its stream broke.")
    stage.refuses(Code.OFFSET_MISMATCH, _put, stage, start(begun, SPEC), chunk(0, content[:half]))
    if _put(stage, start(begun, SPEC), chunk(half, content[half:])) != len(content):
        raise UnmetError("A file that was continued is not whole.")
    stage.refuses(Code.SIZE_MISMATCH, _put, stage, start(begun, SPEC), chunk(len(content), b"x"))


def _waiting(first: Any, over: threading.Event) -> Iterator[Any]:
    yield first
    over.wait(20)


def _meanwhile(call: Callable[[Stage, Any], object]) -> Play:
    """Do something to an upload while a stream of it is open."""

    def play(stage: Stage) -> object:
        begun, over = _open(stage), threading.Event()
        stream = stage.wire.held("Intake/Put", _waiting(_first(begun), over))
        try:
            # It takes a moment to arrive; until then a second one is as good as the first, and may be before it.
            for _ in range(100):
                if not stream.is_active():
                    stream = stage.wire.held("Intake/Put", _waiting(_first(begun), over))
                elif _is_busy(lambda: _put(stage, _first(begun))) and stream.is_active():
                    break
                time.sleep(0.1)
            return call(stage, begun)
        finally:
            over.set()
            stream.cancel()
            stage.settled(lambda: _put(stage, _first(begun)))

    return play


def _is_busy(call: Callable[[], object]) -> bool:
    try:
        call()
    except AnsweredError as error:
        return error.answer.code == Code.BUSY.name
    return False


def _side_by_side(stage: Stage) -> None:
    """Begin and commit one bundle from several sides at once: one upload, one receipt."""
    draft = stage.first("tess")
    with ThreadPoolExecutor(_PARALLEL) as pool:
        begun = list(pool.map(lambda _: stage.begin(draft), range(_PARALLEL)))
        if len({each.token for each in begun}) != 1:
            raise UnmetError("One bundle has several uploads.")
        stage.put(draft, begun[0])
        receipts = set(pool.map(lambda _: _patient_commit(stage, begun[0]), range(_PARALLEL)))
    if len(receipts) != 1:
        raise UnmetError("One bundle has several receipts.")
    stage.check_receipt(draft, receipts.pop())


def _patient_commit(stage: Stage, begun: Any) -> bytes:
    for _ in range(100):
        try:
            return stage.commit(begun)
        except AnsweredError as error:
            if error.answer.code != Code.BUSY.name:
                raise
            time.sleep(0.1)
    raise UnmetError("A commit was never taken.")


def _status_of_an_upload(stage: Stage) -> object:
    """Nothing is said of a bundle that is not whole."""
    return stage.status(_open(stage).digest)


def cases() -> list[Case]:
    """All of them."""
    rows: list[Row] = [(f"Put/digest-{name}", _start(text), UNKNOWN) for name, text in NO_DIGESTS.items()]
    rows += [(f"Commit/digest-{n}", _ask("Commit", digest=text, token=b"x"), UNKNOWN) for n, text in NO_DIGESTS.items()]
    rows += [(f"Status/digest-{n}", _ask("Status", digest=text), Code.BUNDLE_UNKNOWN) for n, text in NO_DIGESTS.items()]
    rows += [
        (f"{verb}/token-{name}", _with_token(change, verb), DENIED)
        for verb in ("Put", "Commit")
        for name, change in TOKENS.items()
    ]
    rows += [
        (f"Put/file-{name}", partial(_put_file, name=text), Code.FILE_NOT_ALLOWED) for name, text in NO_FILES.items()
    ]
    rows += [(f"Put/{name}", play, expects) for name, play, expects in PIECES]
    rows += [
        ("Put/while-another-stream-is-open", _meanwhile(lambda stage, begun: _put(stage, _first(begun))), Code.BUSY),
        ("Commit/while-a-stream-is-open", _meanwhile(Stage.commit), Code.BUSY),
        ("Put/broken-and-continued", _broken, None),
        ("Status/of-an-upload", _status_of_an_upload, Code.BUNDLE_UNKNOWN),
        ("Commit/nothing-sent", _commit_early, Code.MISSING_RANGES),
        ("Commit/a-byte-short", _commit_a_byte_short, None),
        *((f"Commit/one-byte-of-{name}-changed", _digest_mismatch(name), Code.DIGEST_MISMATCH) for name in FILES),
        ("Commit/mended-and-repeated", _mended, None),
        ("Commit/side-by-side", _side_by_side, None),
    ]
    return named("session", rows)
