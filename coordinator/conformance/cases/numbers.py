"""Numbers that no expert has, experts that are others' or none, and cards that no screen should show."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from coordinator.conformance.case import Case, Need, Play, Row, named
from coordinator.conformance.cases.tensors import label
from coordinator.conformance.draft import Draft
from coordinator.conformance.stage import Stage
from coordinator.conformance.weights import Blob, Tensors
from protocol.bundle import CARD
from protocol.errors import Code

NAN, INF = float("nan"), float("inf")
Change = Callable[[Draft], Draft]
CARDS = {
    "no-utf-8": b"# x\xff\n", "escape": b"# \x1b]52;c;YQ==\x07x\n", "nul": b"# x\0\n", "carriage-return": b"# x\r\n",
    "right-to-left": "# a\u202eb\n".encode(), "zero-width": "# a\u200bb\n".encode(),
    "byte-order-mark": b"\xef\xbb\xbf# x\n", "line-separator": "# a\u2028b\n".encode(),
    "utf-16": "# x\n".encode("utf-16"),
}  # fmt: skip


def _blob(end: str, change: Callable[[Blob], Blob]) -> Change:
    """Change the tensor whose name ends so, of adapter or gates."""

    def changed(tensors: Tensors) -> Tensors:
        return {name: change(blob) if name.endswith(end) else blob for name, blob in tensors.items()}

    return lambda draft: replace(draft, tensors=changed(draft.tensors), gates=changed(draft.gates))


def _half(code: str, dtype: str, value: bytes) -> Change:
    """Declare and write the adapter in a dtype of two bytes a number, the first of which are a given value."""

    def change(draft: Draft) -> Draft:
        def cast(blob: Blob) -> Blob:
            numbers = np.frombuffer(blob.data, "<f4")
            wide = (
                numbers.astype("<f2").tobytes()
                if code == "F16"
                else (numbers.view("<u4") >> 16).astype("<u2").tobytes()
            )
            return Blob(code, blob.shape, value + wide[2:])

        tensors = {name: cast(blob) for name, blob in draft.tensors.items()}
        return replace(draft, facts=draft.facts | {"dtype": dtype}, tensors=tensors)

    return change


def _constant(shift: float) -> Change:
    def change(blob: Blob) -> Blob:
        numbers = np.full(blob.shape, shift, "<f4")
        return blob._replace(data=numbers.tobytes())

    return _blob(".gate", change)


def _all(factor: float) -> Change:
    return lambda draft: _blob("lora_A.weight", lambda a: a.times(factor))(
        _blob("lora_B.weight", lambda b: b.times(factor))(draft)
    )


def _card(text: bytes) -> Change:
    return lambda draft: replace(draft, files={CARD: text})


def _judged(name: str, change: Change) -> Play:
    return lambda stage: stage.judged(change(stage.draft("ada", label("numbers", name))))


A, B, GATE = "lora_A.weight", "lora_B.weight", ".gate"
FAULTS: dict[str, tuple[Change, Code]] = {
    **{
        f"{what}-in-{end.strip('.').partition('.')[0]}": (
            _blob(end, lambda blob, v=value: blob.filled(v, 1)), Code.NOT_FINITE  # type: ignore[misc] # bound above
        )
        for what, value in (("NaN", NAN), ("infinity", INF), ("minus-infinity", -INF))
        for end in (A, B, GATE)
    },
    "NaN-last": (_blob(B, lambda blob: blob.filled(NAN, len(blob.data) // 4 - 1)), Code.NOT_FINITE),
    "NaN-all": (_blob(A, lambda blob: blob.filled(NAN)), Code.NOT_FINITE),
    "infinity-in-float16": (_half("F16", "float16", b"\x00\x7c"), Code.NOT_FINITE),
    "NaN-in-bfloat16": (_half("BF16", "bfloat16", b"\xc0\x7f"), Code.NOT_FINITE),
    "gate-of-zeros": (_constant(0.0), Code.CONSTANT_GATE),
    "gate-of-ones": (_constant(1.0), Code.CONSTANT_GATE),
    "gate-of-huge-constant": (_constant(1e30), Code.CONSTANT_GATE),
    "gate-of-rounding": (_blob(GATE, lambda gate: _constant_but(gate, 1e-9)), Code.CONSTANT_GATE),
    "zero-B": (_blob(B, lambda blob: blob.filled(0.0)), Code.NO_EFFECT),
    "zero-A": (_blob(A, lambda blob: blob.filled(0.0)), Code.NO_EFFECT),
    "weights-x-1e4": (_all(1e4), Code.NORM_LIMIT),
    "weights-x-1e10": (_all(1e10), Code.NORM_LIMIT),
    "weights-that-overflow": (_all(1e38), Code.NORM_LIMIT),
    **{f"card-{what}": (_card(text), Code.CARD_INVALID) for what, text in CARDS.items()},
}  # fmt: skip


def _constant_but(gate: Blob, noise: float) -> Blob:
    numbers = 1.0 + noise * np.frombuffer(gate.data, "<f4")
    return gate._replace(data=numbers.astype("<f4").tobytes())


def _gauge_changed(draft: Draft) -> Tensors:
    """The same update in other bytes: B and A multiplied by a matrix and its inverse."""
    (a_name, a), (b_name, b) = draft.tensors.items()
    first, second = (np.frombuffer(blob.data, "<f4").reshape(blob.shape) for blob in (a, b))
    turn = np.eye(len(first), dtype="<f4") * 2
    turn[0, -1] += 1
    return {
        a_name: a._replace(data=(turn @ first).astype("<f4").tobytes()),
        b_name: b._replace(data=(second @ np.linalg.inv(turn)).astype("<f4").tobytes()),
    }


def _of_another(change: Callable[[Draft], Tensors], owner: str) -> Play:
    """Bring what another contributor brought, under a key of one's own."""

    def play(stage: Stage) -> object:
        theirs = stage.let_in()
        stage.member(owner)
        mine = stage.draft(owner, "mine")
        return stage.judged(replace(mine, tensors=change(theirs)))

    return play


def _noisy(share: float) -> Callable[[Draft], Tensors]:
    """The same with noise of a share of its size."""

    def change(draft: Draft) -> Tensors:
        draw = np.random.default_rng(list(hashlib.sha256(draft.digest.encode()).digest()))
        found = {}
        for name, blob in draft.tensors.items():
            numbers = np.frombuffer(blob.data, "<f4")
            noisy = numbers + share * numbers.std() * draw.normal(size=numbers.shape)
            found[name] = blob._replace(data=noisy.astype("<f4").tobytes())
        return found

    return change


def _own_copy(stage: Stage) -> object:
    """One expert has one place."""
    first = stage.let_in()
    return stage.judged(replace(stage.draft("ada", "again"), tensors=_noisy(0.01)(first)))


def _again(stage: Stage) -> None:
    """What was refused stays out, under any name and key."""
    bad = _blob(A, lambda blob: blob.times(1e6))(stage.draft("ada", "loud"))
    stage.refuses(Code.NORM_LIMIT, stage.judged, bad)
    stage.refuses(Code.NORM_LIMIT, stage.judged, bad)  # asked again, nothing is judged anew
    renamed = replace(bad, facts=bad.facts | {"name": "louder"})
    stage.refuses(Code.DUPLICATE_OF, stage.begin, renamed)
    nudged = replace(renamed, tensors=_noisy(0.001)(bad))
    stage.refuses(Code.COPY_OF, stage.judged, nudged)


def cases() -> list[Case]:
    """All of them."""
    rows: list[Row] = [(name, _judged(name, change), code) for name, (change, code) in FAULTS.items()]
    rows += [
        ("honest", lambda stage: stage.let_in(), None),
        ("copy-in-another-gauge", _of_another(_gauge_changed, "kate"), Code.COPY_OF),
        ("copy-with-noise", _of_another(_noisy(0.1), "kim"), Code.COPY_OF),
        ("half-a-copy", _of_another(_noisy(0.7), "liam"), Code.NEAR_COPY),
        ("own-copy-under-another-name", _own_copy, Code.QUOTA),
        ("refused-and-brought-again", _again, None),
    ]
    return named("number", rows, Need.WORKER)
