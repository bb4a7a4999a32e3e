"""Enrolments: keys that present themselves under names, and give their place to another."""

from datetime import UTC, datetime
from typing import Any

from coordinator.conformance.answer import UnmetError
from coordinator.conformance.case import Case, Row, named
from coordinator.conformance.cases.envelopes import send
from coordinator.conformance.draft import REMOVED
from coordinator.conformance.fault import Flaw, describe, in_payload
from coordinator.conformance.stage import Stage
from protocol.documents import sign_rotation
from protocol.errors import Code
from protocol.v1 import intake_pb2

SPEC = Code.SPEC_INVALID
# What never is a name, a digest, a time; documents of every kind are tried with them.
NO_NAMES = {
    "empty": "", "65-letters": "a" * 65, "upper-case": "Ada", "leading-dot": ".ada", "trailing-dash": "ada-",
    "leading-underscore": "_ada", "space": "a da", "slash": "a/da", "umlaut": "ädä", "line-break": "ada\n",
    "escape": "a\x1b[2Jda", "right-to-left": "a\u202eda", "zero-width": "a\u200bda", "nul": "a\0da", "emoji": "a🦆da",
}  # fmt: skip
NO_DIGESTS = {
    "empty": "", "63-digits": "a" * 63, "65-digits": "a" * 65, "upper-case": "A" * 64, "no-digits": "g" * 64,
    "line-break": "a" * 64 + "\n", "0x": "0x" + "a" * 62, "full-width": "\uff11" * 64,
}  # fmt: skip
NO_TIMES = {
    "word": "yesterday", "february-30": "2026-02-30T12:00:00Z", "hour-24": "2026-11-22T24:00:00Z",
    "second-61": "2026-11-22T12:00:61Z", "month-13": "2026-13-01T12:00:00Z", "no-zone": "2026-11-22T12:00:00",
    "offset": "2026-11-22T12:00:00+00:00", "space": "2026-11-22 12:00:00Z", "fraction": "2026-11-22T12:00:00.5Z",
    "year-of-five-digits": "12026-11-22T12:00:00Z", "line-break": "2026-11-22T12:00:00Z\n",
}  # fmt: skip
# The eight points of small order and their other spellings, by y; the last bit is the sign of x.
SMALL_ORDER = (
    "00" * 32,
    "01" + "00" * 31,
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
)
WEAK_KEYS = [key[:-2] + f"{int(key[-2:], 16) | sign:02x}" for key in SMALL_ORDER for sign in (0, 0x80)]
FIELDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("pool", (REMOVED, None, 7, [])),
    ("name", (REMOVED, None, 7, True, ["ada"], {"x": 1})),
    ("key", (REMOVED, None, 7, [])),
    ("created", (REMOVED, None, 1764072000, 1.5)),
    ("extra", (1,)),
)


def _field(name: str, value: Any) -> Flaw:
    return Flaw(f"{name}-{describe(value)}", in_payload(("predicate", name), value), SPEC)


FAULTS = [
    *(_field(name, value) for name, values in FIELDS for value in values),
    *(Flaw(f"name-{what}", in_payload(("predicate", "name"), text), SPEC) for what, text in NO_NAMES.items()),
    *(Flaw(f"key-{what}", in_payload(("predicate", "key"), text), SPEC) for what, text in NO_DIGESTS.items()),
    *(Flaw(f"pool-{what}", in_payload(("predicate", "pool"), text), SPEC) for what, text in NO_DIGESTS.items()),
    *(Flaw(f"created-{what}", in_payload(("predicate", "created"), text), SPEC) for what, text in NO_TIMES.items()),
    *(
        Flaw(f"weak-key-{place}", in_payload(("predicate", "key"), key), Code.WEAK_KEY)
        for place, key in enumerate(WEAK_KEYS)
    ),
    Flaw("key-of-another", in_payload(("predicate", "key"), "5" + "8" * 63), Code.BAD_SIGNATURE),
    Flaw("another-pool", in_payload(("predicate", "pool"), "0" * 64), Code.WRONG_POOL),
    Flaw("name-like-a-key", in_payload(("predicate", "name"), "a1" * 32), Code.NAME_MISLEADING),
    Flaw("name-of-digits-like-a-key", in_payload(("predicate", "name"), "7" * 64), Code.NAME_MISLEADING),
]


def _again(stage: Stage) -> None:
    stage.member("ada")
    if stage.enrol(stage.enrolment("ada")) != "active":
        raise UnmetError("A known key is active no more.")


def _later(stage: Stage) -> None:
    """Tell another day; it is the same key under the same name."""
    stage.member("ada")
    if stage.enrol(stage.enrolment("ada", created="2026-11-23T12:00:00Z")) != "active":
        raise UnmetError("A known key is active no more.")


def _other_name(stage: Stage) -> str:
    stage.member("ada")
    return stage.enrol(stage.enrolment("ada", name=stage.called("ada2")))


def _taken_name(stage: Stage) -> str:
    stage.member("ada")
    return stage.enrol(stage.enrolment("impostor", name=stage.called("ada")))


def _longest(stage: Stage) -> None:
    stage.enrol(stage.enrolment("long", name=stage.called("x" * 64)[:64]))


def _all_letters(stage: Stage) -> None:
    stage.enrol(stage.enrolment("letters", name=stage.called("a.b_c-d..e")))


def _rotate(stage: Stage, old: str, new: str) -> Any:
    """Have a contributor's key give its place to another."""
    envelope = sign_rotation(stage.pool, stage.identity(old), stage.identity(new), datetime.now(UTC))
    return stage.wire.ask("Intake/Rotate", intake_pb2.RotateRequest(envelope=envelope))


def _rotated(stage: Stage, owner: str) -> str:
    """A contributor whose key was exchanged; returns whose key came in its place."""
    stage.member(owner)
    _rotate(stage, owner, f"{owner}-new")
    return f"{owner}-new"


def _old_begins(stage: Stage) -> Any:
    _rotated(stage, "old-begins")
    return stage.begin(stage.draft("old-begins", "late"))


def _new_begins(stage: Stage) -> Any:
    return stage.begin(stage.draft(_rotated(stage, "new-begins"), "early"))


def _old_rotates(stage: Stage) -> Any:
    _rotated(stage, "old-rotates")
    return _rotate(stage, "old-rotates", "old-rotates-third")


def _unknown(stage: Stage) -> Any:
    return _rotate(stage, "nobody-old", "nobody-new")


def _to_a_members(stage: Stage) -> Any:
    stage.member("to-a-member")
    stage.member("a-member")
    return _rotate(stage, "to-a-member", "a-member")


def cases() -> list[Case]:
    """All of them."""
    rows: list[Row] = [(fault.name, send("Enrol", fault.spoil), fault.code) for fault in FAULTS]
    rows += [
        ("twice", _again, None),
        ("later", _later, None),
        ("under-another-name", _other_name, Code.NAME_TAKEN),
        ("name-of-another", _taken_name, Code.NAME_TAKEN),
        ("name-of-64-letters", _longest, None),
        ("name-of-all-letters", _all_letters, None),
    ]
    rotations: list[Row] = [
        ("old-key-begins", _old_begins, Code.KEY_ROTATED),
        ("new-key-begins", _new_begins, None),
        ("old-key-rotates", _old_rotates, Code.KEY_ROTATED),
        ("of-a-key-that-nobody-knows", _unknown, Code.KEY_UNKNOWN),
        ("to-a-members-key", _to_a_members, Code.NAME_TAKEN),
    ]
    return named("enrolment", rows) + named("rotation", rotations)
