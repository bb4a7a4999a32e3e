"""The transparency log: what was done here is in it, it only grows, and nothing else is answered for."""

from collections.abc import Callable
from functools import partial
from typing import Any

from coordinator.conformance.answer import UnmetError
from coordinator.conformance.case import Case, Need, Play, Row, named
from coordinator.conformance.stage import Stage
from protocol.errors import Code
from protocol.log import merkle
from protocol.log.checkpoint import Checkpoint, read_checkpoint
from protocol.log.leaf import read_leaf
from protocol.log.merkle import Span, Subtree
from protocol.v1 import log_pb2

_PAGE = 1000
OMISSION, INVALID, MALFORMED = Code.LOG_OMISSION, Code.REQUEST_INVALID, Code.SPEC_INVALID


def _head(stage: Stage) -> Checkpoint:
    reply = stage.wire.ask("Log/GetCheckpoint", log_pb2.GetCheckpointRequest())
    return read_checkpoint(reply.checkpoint, stage.pool)


def _consistency(stage: Stage, first: int, second: int) -> list[bytes]:
    request = log_pb2.GetConsistencyRequest(first=first, second=second)
    return list(stage.wire.ask("Log/GetConsistency", request).hashes)


def _leaves(stage: Stage, first: int, count: int) -> list[bytes]:
    return list(stage.wire.ask("Log/GetLeaves", log_pb2.GetLeavesRequest(start=first, count=count)).leaves)


def _included(stage: Stage, asked: tuple[str, str, str]) -> Any:
    return _inclusion(stage, _head(stage).size, *asked)


def _inclusion(stage: Stage, size: int, kind: str, subject: str, step: str) -> Any:
    request = log_pb2.GetInclusionRequest(size=size, kind=kind, subject=subject, step=step)
    return stage.wire.ask("Log/GetInclusion", request)


def _holds(stage: Stage, kind: str, subject: str, step: str) -> None:
    """See that the log proves an entry."""
    head = _head(stage)
    reply = _inclusion(stage, head.size, kind, subject, step)
    leaf = read_leaf(reply.leaf)
    if (leaf.kind, leaf.subject, leaf.step, leaf.number) != (kind, subject, step, reply.index + 1):
        raise UnmetError("Another entry is proven than was asked for.")
    if not merkle.is_included(merkle.leaf_hash(reply.leaf), reply.index, head.size, list(reply.hashes), head.root):
        raise UnmetError("The proof of an entry does not hold.")


def _key(stage: Stage) -> None:
    _holds(stage, "contributor", stage.member("ada").key, "active")


def _received(stage: Stage) -> None:
    draft = stage.first("vera")
    if not stage.begin(draft).receipt:
        stage.submit(draft)
    _holds(stage, "bundle", draft.digest, "received")


def _accepted(stage: Stage) -> None:
    _holds(stage, "bundle", stage.let_in().digest, "accepted")


def _grows(stage: Stage) -> None:
    """What is signed now continues what was signed before an entry."""
    before = _head(stage)
    stage.member("lena")
    after = _head(stage)
    if after.size <= before.size:
        raise UnmetError("A key was enrolled, and the log did not grow.")
    proof = _consistency(stage, before.size, after.size)
    if not merkle.continues(before.size, before.root, after.size, after.root, proof):
        raise UnmetError("The log does not continue what it was.")


def _whole(stage: Stage) -> None:
    """All entries, hashed, give the root that is signed."""
    stage.member("ada")
    head, leaves = _head(stage), list[bytes]()
    while len(leaves) < head.size:
        page = _leaves(stage, len(leaves), _PAGE)
        if not page:
            raise UnmetError("Entries are missing that are signed for.")
        leaves += page
    hashes = dict(merkle.grow(0, map(merkle.leaf_hash, leaves[: head.size]), {}))
    if merkle.root(head.size, hashes) != head.root:
        raise UnmetError("The entries are not those that are signed for.")
    if [read_leaf(leaf).number for leaf in leaves] != list(range(1, len(leaves) + 1)):
        raise UnmetError("The entries are not numbered one after the other.")


def _every_prefix(stage: Stage) -> None:
    """The log as it was at several sizes leads to the log as it is."""
    head = _head(stage)
    hashes = dict(merkle.grow(0, map(merkle.leaf_hash, _leaves(stage, 0, min(head.size, _PAGE))), {}))
    for size in {1, 2, 3, head.size // 2, head.size - 1, head.size} & set(range(1, _PAGE)):
        kept: dict[Subtree, bytes] = {tree: hashes[tree] for tree in merkle.perfect(Span(0, size))}
        proof = _consistency(stage, size, head.size)
        if not merkle.continues(size, merkle.root(size, kept), head.size, head.root, proof):
            raise UnmetError(f"From {size} entries no proof leads to {head.size}.")


def _empty_prefix(stage: Stage) -> None:
    if _consistency(stage, 0, _head(stage).size):
        raise UnmetError("From an empty log on there is something to prove.")


def _page(first: Callable[[int], int], count: int, most: Callable[[int], int]) -> Play:
    """Ask for entries, and see that no more come than may."""

    def play(stage: Stage) -> None:
        size = _head(stage).size
        if len(_leaves(stage, first(size), count)) > most(size):
            raise UnmetError("More entries came than may.")

    return play


NOTES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "words": lambda _: b"let me in",
    "no-utf-8": lambda raw: raw.replace(b"greylag", b"grey\xffag"),
    "control": lambda raw: raw.replace(b"greylag", b"grey\x1bag"),
    "nul": lambda raw: raw.replace(b"greylag", b"grey\x00ag"),
    "cut": lambda raw: raw[:-1],
    "without-signature": lambda raw: raw.partition(b"\n\n")[0] + b"\n\n",
    "without-empty-line": lambda raw: raw.replace(b"\n\n", b"\n"),
    "with-65-signatures": lambda raw: raw + raw.rpartition(b"\n\n")[2] * 64,
    "with-a-line-more": lambda raw: raw.replace(b"\n\n", b"\nmore\n\n"),
    "of-negative-size": lambda raw: _size(raw, b"-1"),
    "of-size-with-a-leading-zero": lambda raw: _size(raw, b"01"),
    "of-size-of-17-digits": lambda raw: _size(raw, b"1" * 17),
    "of-size-in-words": lambda raw: _size(raw, b"two"),
    "of-a-short-root": lambda raw: _root(raw, b"QQ=="),
    "of-a-root-of-url-letters": lambda raw: _root(raw, b"-_" * 21 + b"-="),
    "too-long": lambda raw: raw + b"x" * (1 << 14),
    "signature-no-base64": lambda raw: raw[:-5] + b"!" + raw[-4:],
    "signature-short": lambda raw: raw.rpartition(b" ")[0] + b" QQ==\n",
    "hyphen-for-the-dash": lambda raw: raw.replace("— ".encode(), b"- "),
}


def _size(raw: bytes, size: bytes) -> bytes:
    name, _, rest = raw.split(b"\n", 2)
    return b"\n".join((name, size, rest))


def _root(raw: bytes, root: bytes) -> bytes:
    name, size, _, rest = raw.split(b"\n", 3)
    return b"\n".join((name, size, root, rest))


def _cosigned(change: Callable[[bytes], bytes]) -> Play:
    """Bring the log's own checkpoint as a witness would, changed."""
    return lambda stage: stage.wire.ask(
        "Log/AddCosignature", log_pb2.AddCosignatureRequest(checkpoint=change(_head(stage).note.encode()))
    )


def _one_more(raw: bytes) -> bytes:
    """Say that the log has one entry more."""
    return _size(raw, b"%d" % (int(raw.split(b"\n", 2)[1]) + 1))


def _flipped(raw: bytes) -> bytes:
    """Change a letter in the middle of the signature."""
    at = len(raw) - 30
    return raw[:at] + (b"A" if raw[at : at + 1] != b"A" else b"B") + raw[at + 1 :]


def cases() -> list[Case]:
    """All of them."""
    words = {
        "nothing": ("", "", ""), "unknown-subject": ("contributor", "0" * 64, "active"),
        "unknown-kind": ("miracle", "0" * 64, "active"), "nul": ("bundle", "\0" * 64, "received"),
        "escape": ("\x1b[2J", "x", "y"), "umlaut": ("bundle", "ä" * 64, "received"), "long": ("x" * 9999, "y", "z"),
        "sql": ("bundle", "' OR 1=1 --", "received"),
    }  # fmt: skip
    rows: list[Row] = [
        (f"GetInclusion/{name}", partial(_included, asked=asked), OMISSION) for name, asked in words.items()
    ]
    rows += [
        ("GetInclusion/key", _key, None),
        ("GetInclusion/bundle", _received, None),
        ("GetInclusion/of-a-log-of-nothing", lambda stage: _inclusion(
            stage, 0, "contributor", stage.member("ada").key, "active"), OMISSION),
        ("GetInclusion/of-a-larger-log", lambda stage: _inclusion(
            stage, 1 << 30, "contributor", stage.member("ada").key, "active"), INVALID),
        ("GetInclusion/of-a-log-of-2^64-1", lambda stage: _inclusion(
            stage, (1 << 64) - 1, "contributor", stage.member("ada").key, "active"), INVALID),
        ("GetConsistency/grows", _grows, None),
        ("GetConsistency/every-prefix", _every_prefix, None),
        ("GetConsistency/from-nothing", _empty_prefix, None),
        ("GetConsistency/backwards", lambda stage: _consistency(stage, 2, 1), INVALID),
        ("GetConsistency/beyond", lambda stage: _consistency(stage, 1, 1 << 30), INVALID),
        ("GetConsistency/from-2^64-1", lambda stage: _consistency(stage, (1 << 64) - 1, (1 << 64) - 1), INVALID),
        ("GetConsistency/to-2^31", lambda stage: _consistency(stage, 1, 1 << 31), INVALID),
        ("GetLeaves/whole", _whole, None),
        ("GetLeaves/none", _page(lambda _: 0, 0, lambda _: 0), None),
        ("GetLeaves/one", _page(lambda size: size - 1, 1, lambda _: 1), None),
        ("GetLeaves/all-at-once", _page(lambda _: 0, (1 << 64) - 1, lambda size: min(size + 99, _PAGE)), None),
        ("GetLeaves/beyond", _page(lambda size: size + 9999, 10, lambda _: 0), None),
        ("GetLeaves/from-2^63", lambda stage: _leaves(stage, 1 << 63, 1), INVALID),
        ("GetLeaves/from-2^64-1", lambda stage: _leaves(stage, (1 << 64) - 1, 1), INVALID),
        *((f"AddCosignature/{name}", _cosigned(change), MALFORMED) for name, change in NOTES.items()),
        ("AddCosignature/another-log", _cosigned(
            lambda raw: raw.replace(b"greylag.org/log/", b"greylag.org/log/0", 1)), Code.WRONG_POOL),
        ("AddCosignature/one-more-entry", _cosigned(_one_more), Code.BAD_SIGNATURE),
        ("AddCosignature/signature-changed", _cosigned(_flipped), Code.BAD_SIGNATURE),
        ("AddCosignature/by-no-witness", _cosigned(lambda raw: raw), Code.KEY_UNKNOWN),
    ]  # fmt: skip
    judged: list[Row] = [("GetInclusion/acceptance", _accepted, None)]
    return named("log", rows) + named("log", judged, Need.WORKER)
