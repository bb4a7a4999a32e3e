"""Envelopes and signatures: every way in which an envelope is none, at each of the three calls that take one."""

import base64
import json
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import Message

from coordinator.conformance.case import Case, Need, Play, named
from coordinator.conformance.cases.bindings import binding
from coordinator.conformance.draft import REMOVED, Unsigned, another, dump
from coordinator.conformance.fault import Flaw, Spoil, as_text, describe, in_envelope
from coordinator.conformance.stage import Stage
from protocol.errors import Code
from protocol.signing import PAYLOAD_TYPE
from protocol.v1 import intake_pb2

SCHEMA = Code.ENVELOPE_SCHEMA
# What anybody, enrolled or not, may bring in an envelope.
CARRIERS: dict[str, tuple[Callable[[bytes], Message], Callable[[Stage], Unsigned], tuple[Need, ...]]] = {
    "Begin": (lambda raw: intake_pb2.BeginRequest(envelope=raw), lambda stage: stage.draft("nobody", "x").source, ()),
    "Enrol": (lambda raw: intake_pb2.EnrolRequest(envelope=raw), lambda stage: stage.enrolment("nobody"), ()),
    "Bind": (lambda raw: intake_pb2.BindRequest(envelope=raw), lambda stage: binding(stage, "nobody"), (Need.FLEET,)),
}

TEXTS: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("nothing", lambda _: b""),
    ("words", lambda _: b"let me in"),
    ("cut-by-a-byte", lambda raw: raw[:-1]),
    ("cut-in-half", lambda raw: raw[: len(raw) // 2]),
    ("byte-order-mark", lambda raw: b"\xef\xbb\xbf" + raw),
    ("leading-nul", lambda raw: b"\0" + raw),
    ("trailing-nul", lambda raw: raw + b"\0"),
    ("trailing-word", lambda raw: raw + b" x"),
    ("twice", lambda raw: raw + raw),
    ("utf-16", lambda raw: raw.decode().encode("utf-16")),
    ("no-utf-8", lambda raw: raw.replace(b"payloadType", b"payload\xffype")),
    ("single-quotes", lambda raw: raw.replace(b'"', b"'")),
    ("comment", lambda raw: raw + b"/* */"),
    ("trailing-comma", lambda raw: raw[:-1] + b",}"),
    ("pickle", lambda _: b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    ("zip", lambda _: b"PK\x03\x04" + bytes(40)),
    ("protobuf", lambda _: b"\x0a\x03abc"),
    ("number", lambda _: b"7"),
    ("text", lambda _: b'"x"'),
    ("null", lambda _: b"null"),
    ("true", lambda _: b"true"),
    ("empty-list", lambda _: b"[]"),
    ("empty-object", lambda _: b"{}"),
    ("listed", lambda raw: b"[" + raw + b"]"),
    ("depth-33", lambda _: b"[" * 33 + b"]" * 33),
    ("depth-7000", lambda _: b"[" * 7000 + b"]" * 7000),
    ("depth-7000-open", lambda _: b'{"a":' * 1400),
    ("key-twice", lambda raw: raw[:-1] + b',"payloadType":"' + PAYLOAD_TYPE.encode() + b'"}'),
    ("NaN", lambda raw: raw[:-1] + b',"x":NaN}'),
    ("Infinity", lambda raw: raw[:-1] + b',"x":-Infinity}'),
    ("1e999", lambda raw: raw[:-1] + b',"x":1e999}'),
    ("integer-of-400-digits", lambda raw: raw[:-1] + b',"x":' + b"9" * 400 + b"}"),
    ("half-a-surrogate-pair", lambda raw: raw[:-1] + b',"x":"\\ud800"}'),
    ("raw-line-break", lambda raw: raw.replace(b'"keyid"', b'"key\nid"')),
)


def _sig(change: Callable[[str], Any]) -> Spoil:
    """Spell the signature otherwise."""
    return lambda source: in_envelope(("signatures", 0, "sig"), change(source.envelope["signatures"][0]["sig"]))(source)


def _two(source: Unsigned) -> bytes:
    entry = source.envelope["signatures"][0]
    return in_envelope(("signatures",), [entry, entry])(source)


def _nine(source: Unsigned) -> bytes:
    sig = source.envelope["signatures"][0]["sig"]
    return in_envelope(("signatures",), [{"keyid": f"{n:064x}", "sig": sig} for n in range(9)])(source)


FIELDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("payload", (REMOVED, None, 7, [], "-_-_", "QQ=", "QR==", "Q\nQ==", "QQ== ", "QQ==QQ==", "é")),
    (
        "payloadType",
        (REMOVED, None, 7, "", "application/json", PAYLOAD_TYPE.upper(), f"{PAYLOAD_TYPE} ", [PAYLOAD_TYPE]),
    ),
    ("signatures", (REMOVED, None, 7, "x", {}, [], [[]], [None], [7], [{}])),
    ("cert", ("x",)),
)
SIGNATURE_FIELDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("keyid", (REMOVED, None, 7, "", "a" * 63, "a" * 65, "A" * 64, "g" * 64)),
    ("sig", (REMOVED, None, 7, [], "-_-_")),
    ("cert", ("x",)),
)
ENVELOPE_FAULTS = [
    *(Flaw(name, as_text(change), SCHEMA) for name, change in TEXTS),
    *(
        Flaw(f"{name}-{describe(value)}", in_envelope((name,), value), SCHEMA)
        for name, values in FIELDS
        for value in values
    ),
    *(
        Flaw(f"signature-{name}-{describe(value)}", in_envelope(("signatures", 0, name), value), SCHEMA)
        for name, values in SIGNATURE_FIELDS
        for value in values
    ),
    Flaw("sig-without-padding", _sig(lambda text: text.rstrip("=")), SCHEMA),
    # Its last digit holds four bits of the signature and four that decoders overlook.
    Flaw("sig-with-loose-bits", _sig(lambda text: f"{text[:-3]}{chr(ord(text[-3]) + 1)}=="), SCHEMA),
    Flaw("sig-with-line-break", _sig(lambda text: f"{text[:9]}\n{text[9:]}"), SCHEMA),
    Flaw("signature-by-one-key-twice", _two, SCHEMA),
    Flaw("nine-signatures", _nine, SCHEMA),
]
EVERYWHERE = frozenset({
    "nothing", "words", "cut-by-a-byte", "key-twice", "NaN", "depth-7000", "pickle", "empty-object", "no-utf-8",
    "payload-left-out", "payload--_-_", "payloadType-application~json", "signatures-()", "cert-x",
    "signature-keyid-aaaaaaaaaaaaaaaa..65", "signature-cert-x", "signature-by-one-key-twice", "nine-signatures",
    "sig-with-loose-bits",
})  # fmt: skip
"""What every call is tried with; they read envelopes by one reader here, but need not elsewhere."""


def _signature(change: Callable[[Unsigned], bytes]) -> Spoil:
    """Put other bytes in the signature's place."""
    return lambda source: in_envelope(("signatures", 0, "sig"), base64.b64encode(change(source)).decode())(source)


def _honest(source: Unsigned) -> bytes:
    return base64.b64decode(source.envelope["signatures"][0]["sig"])


def _flip(place: int, bit: int = 1) -> Spoil:
    def change(source: Unsigned) -> bytes:
        signature = bytearray(_honest(source))
        signature[place] ^= bit
        return bytes(signature)

    return _signature(change)


# The order of the group: S + L is another spelling of the same signature, which RFC 8032 forbids.
_L = (1 << 252) + 27742317777372353535851937790883648493


def _plus_order(source: Unsigned) -> bytes:
    signature = _honest(source)
    return signature[:32] + (int.from_bytes(signature[32:], "little") + _L).to_bytes(32, "little")


def _encoded(payload: bytes, payload_type: str = PAYLOAD_TYPE, head: str = "DSSEv1") -> bytes:
    return f"{head} {len(payload_type)} {payload_type} {len(payload)} ".encode() + payload


def _over(message: Callable[[bytes], bytes]) -> Spoil:
    """Sign something else than what DSSE says is signed."""
    return _signature(lambda source: source.signer.sign_bare(message(source.payload)))


def _other_payload(source: Unsigned) -> bytes:
    payload = source.payload.replace(b'"created":"2', b'"created":"1')
    return in_envelope(("payload",), base64.b64encode(payload).decode())(source)


def _by_another(source: Unsigned) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(another(source.signer).sign(source.payload))
    return found


def _by_another_under_our_name(source: Unsigned) -> bytes:
    found = _by_another(source)
    found["signatures"][0]["keyid"] = source.signer.public.keyid
    return dump(found)


SIGNATURE_FAULTS = [
    Flaw("another-payload", _other_payload, Code.BAD_SIGNATURE),
    Flaw("first-bit", _flip(0), Code.BAD_SIGNATURE),
    Flaw("point", _flip(20, 16), Code.BAD_SIGNATURE),
    Flaw("scalar", _flip(40), Code.BAD_SIGNATURE),
    Flaw("last-bit", _flip(63, 128), Code.BAD_SIGNATURE),
    Flaw("empty", _signature(lambda _: b""), Code.BAD_SIGNATURE),
    Flaw("63-bytes", _signature(lambda source: _honest(source)[:-1]), Code.BAD_SIGNATURE),
    Flaw("65-bytes", _signature(lambda source: _honest(source) + b"\0"), Code.BAD_SIGNATURE),
    Flaw("zeros", _signature(lambda _: bytes(64)), Code.BAD_SIGNATURE),
    Flaw("ones", _signature(lambda _: b"\xff" * 64), Code.BAD_SIGNATURE),
    Flaw("identity-point", _signature(lambda _: b"\1" + bytes(63)), Code.BAD_SIGNATURE),
    Flaw("scalar-plus-group-order", _signature(_plus_order), Code.BAD_SIGNATURE),
    Flaw("over-the-bare-payload", _over(lambda payload: payload), Code.BAD_SIGNATURE),
    Flaw("over-another-type", _over(lambda payload: _encoded(payload, "application/json")), Code.BAD_SIGNATURE),
    Flaw("over-another-version", _over(lambda payload: _encoded(payload, head="DSSEv2")), Code.BAD_SIGNATURE),
    Flaw("over-an-empty-payload", _over(lambda _: _encoded(b"")), Code.BAD_SIGNATURE),
    Flaw("by-another-key-under-the-right-keyid", _by_another_under_our_name, Code.BAD_SIGNATURE),
]
FOREIGN = [
    ("by-another-key", lambda source: dump(_by_another(source))),
    ("keyid-of-nobody", in_envelope(("signatures", 0, "keyid"), "0" * 64)),
]


def send(method: str, spoil: Spoil) -> Play:
    """Bring a spoilt envelope to one of the three calls."""
    request, source, _ = CARRIERS[method]
    return lambda stage: stage.wire.ask(f"Intake/{method}", request(spoil(source(stage))))


def faulty(subject: str, method: str, faults: Iterable[Flaw]) -> list[Case]:
    """Make a case of each fault at one call."""
    rows = ((f"{method}/{fault.name}", send(method, fault.spoil), fault.code) for fault in faults)
    return named(subject, rows, *CARRIERS[method][2])


def cases() -> list[Case]:
    """All of them."""
    found = faulty("envelope", "Begin", ENVELOPE_FAULTS)
    for method in CARRIERS:
        if method != "Begin":
            found += faulty("envelope", method, (fault for fault in ENVELOPE_FAULTS if fault.name in EVERYWHERE))
        # A bundle names its signer before anything is verified.
        foreign = Code.SIGNER_MISMATCH if method == "Begin" else Code.BAD_SIGNATURE
        stranger = [Flaw(name, spoil, foreign) for name, spoil in FOREIGN]
        found += faulty("signature", method, [*SIGNATURE_FAULTS, *stranger])
        oversize = Flaw("too-long", as_text(lambda raw: raw + b" " * (1 << 20)), Code.TOO_LARGE)
        found += faulty("envelope", method, [oversize])
    return found
