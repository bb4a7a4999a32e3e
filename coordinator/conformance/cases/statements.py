"""Statements: what is signed, and signed well, but is not what a call is about."""

from typing import Any

from coordinator.conformance.case import Case
from coordinator.conformance.cases.envelopes import faulty
from coordinator.conformance.draft import REMOVED, Unsigned, dump
from coordinator.conformance.fault import Flaw, as_payload, describe, in_payload
from protocol.bundle import BUNDLE_TYPE
from protocol.documents import ENROLMENT_TYPE, RECEIPT_TYPE
from protocol.errors import Code
from protocol.fleet.node_key import BINDING_TYPE
from protocol.release import CANDIDATE_TYPE, RELEASE_TYPE
from protocol.spec import POOL_TYPE
from protocol.statement import STATEMENT_TYPE

SCHEMA, UNSUPPORTED = Code.ENVELOPE_SCHEMA, Code.UNSUPPORTED_STATEMENT
OWN_TYPE = {"Begin": BUNDLE_TYPE, "Enrol": ENROLMENT_TYPE, "Bind": BINDING_TYPE}
TYPES = (POOL_TYPE, RECEIPT_TYPE, RELEASE_TYPE, CANDIDATE_TYPE, *OWN_TYPE.values())
FIELDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("_type", (REMOVED,)),
    ("subject", (REMOVED, None, 7, "x", {}, [], [None], [[]], [{}])),
    ("predicateType", (REMOVED,)),
    ("predicate", (REMOVED, None, 7, "x", [])),
    ("extra", (1,)),
)
FOREIGN_TYPES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("_type", (None, 7, "", "https://in-toto.io/Statement/v0.1", STATEMENT_TYPE.upper(), f"{STATEMENT_TYPE}/")),
    ("predicateType", (None, 7, "", "https://slsa.dev/provenance/v1")),
)
_SHA = "a" * 64
SUBJECTS: dict[str, Any] = {
    "without-name": {"digest": {"sha256": _SHA}},
    "without-digest": {"name": "a"},
    "with-more": {"name": "a", "digest": {"sha256": _SHA}, "uri": "x"},
    "sha512-alone": {"name": "a", "digest": {"sha512": "a" * 128}},
    "two-digests": {"name": "a", "digest": {"sha256": _SHA, "sha512": "a" * 128}},
    "digest-a-text": {"name": "a", "digest": _SHA},
    "digest-upper-case": {"name": "a", "digest": {"sha256": "A" * 64}},
    "digest-short": {"name": "a", "digest": {"sha256": "a" * 63}},
    "digest-long": {"name": "a", "digest": {"sha256": "a" * 65}},
    "digest-line-break": {"name": "a", "digest": {"sha256": f"{_SHA}\n"}},
    "digest-number": {"name": "a", "digest": {"sha256": 7}},
    "name-number": {"name": 7, "digest": {"sha256": _SHA}},
}
NAMES = {
    "empty": "", "absolute": "/etc/passwd", "parent": "..", "upwards": "../x", "through-parents": "a/../../x",
    "folder": "a/b", "backslash": "a\\b", "drive": "c:x", "nul": "x\0", "space": "a b", "hidden": ".x",
    "option": "-rf", "long": "x" * 129, "umlaut": "ü", "full-width": "\uff41", "right-to-left": "a\u202eb",
    "zero-width": "a\u200bb", "escape": "\x1b[2J", "line-break": "a\n", "percent": "%2e%2e",
}  # fmt: skip


def _subject(entry: Any) -> Any:
    """Sign it about something else."""
    return in_payload(("subject",), [entry])


def _twice(source: Unsigned) -> bytes:
    first = source.document["subject"][0]
    return in_payload(("subject",), [first, first])(source)


FAULTS = [
    *(Flaw(f"{n}-{describe(v)}", in_payload((n,), v), SCHEMA) for n, values in FIELDS for v in values),
    *(Flaw(f"{n}-{describe(v)}", in_payload((n,), v), UNSUPPORTED) for n, values in FOREIGN_TYPES for v in values),
    *(Flaw(f"subject-{name}", _subject(entry), SCHEMA) for name, entry in SUBJECTS.items()),
    *(
        Flaw(f"subject-name-{name}", _subject({"name": text, "digest": {"sha256": _SHA}}), SCHEMA)
        for name, text in NAMES.items()
    ),
    Flaw("subject-twice", _twice, SCHEMA),
    Flaw("payload-empty", as_payload(lambda _: b""), SCHEMA),
    Flaw("payload-words", as_payload(lambda _: b"let me in"), SCHEMA),
    Flaw("payload-a-list", as_payload(lambda _: b"[]"), SCHEMA),
    Flaw("payload-listed", as_payload(lambda raw: b"[" + raw + b"]"), SCHEMA),
    Flaw("payload-cut", as_payload(lambda raw: raw[:-1]), SCHEMA),
    Flaw("payload-trailing-word", as_payload(lambda raw: raw + b"x"), SCHEMA),
    Flaw("payload-no-utf-8", as_payload(lambda raw: raw.replace(b"subject", b"sub\xffect")), SCHEMA),
    Flaw("payload-NaN", as_payload(lambda raw: raw[:-1] + b',"x":NaN}'), SCHEMA),
    Flaw("payload-key-twice", as_payload(lambda raw: raw[:-1] + b',"_type":"x"}'), SCHEMA),
    Flaw("payload-inner-key-twice", as_payload(
        lambda raw: raw.replace(b'"predicate":{', b'"predicate":{"pool":"","pool":"",')), SCHEMA),
    Flaw("payload-integer-beyond-2^53", as_payload(lambda raw: raw[:-1] + b',"x":9007199254740993}'), SCHEMA),
    Flaw("payload-depth-33", as_payload(lambda _: dump({"a": 1})[:-2] + b"[" * 33 + b"]" * 33 + b"}"), SCHEMA),
    Flaw("payload-half-a-surrogate-pair", as_payload(lambda raw: raw[:-1] + b',"x":"\\udfff"}'), SCHEMA),
]  # fmt: skip
EVERYWHERE = frozenset({
    "_type-https~~~in-toto...33", "predicateType-https~~~slsa.dev..30", "subject-left-out", "subject-()",
    "predicate-()", "extra-1", "subject-sha512-alone", "subject-name-upwards", "subject-twice", "payload-NaN",
    "payload-key-twice", "payload-depth-33",
})  # fmt: skip
"""What every call is tried with."""


def cases() -> list[Case]:
    """All of them."""
    found = []
    for method, own in OWN_TYPE.items():
        faults = [fault for fault in FAULTS if method == "Begin" or fault.name in EVERYWHERE]
        others = (each for each in TYPES if each != own)
        faults += [
            Flaw(f"a-{each.split('/')[-2]}", in_payload(("predicateType",), each), UNSUPPORTED) for each in others
        ]
        found += faulty("statement", method, faults)
    return found
