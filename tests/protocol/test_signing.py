import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from protocol.errors import Code, Refused
from protocol.signing import MAX_SIGNATURES, PAYLOAD_TYPE, PublicKey, Signed
from tests.protocol.samples import CONTRIBUTOR, STRANGER, identity
from tests.protocol.strategies import changed_json, few, many, mutations

PAYLOAD = b'{"some": "payload"}'
ENVELOPE = CONTRIBUTOR.sign(PAYLOAD)
KEY = CONTRIBUTOR.public


def refusal(raw: bytes, key: PublicKey = KEY) -> Code:
    with pytest.raises(Refused) as refused:
        Signed.parse(raw).verify(key)
    assert len(refused.value.message) < 300
    return refused.value.code


def altered(change: Callable[[dict[str, Any]], object], raw: bytes = ENVELOPE) -> bytes:
    document = json.loads(raw)
    change(document)
    return json.dumps(document).encode()


def with_field(name: str, value: Any) -> bytes:
    return altered(lambda document: document.__setitem__(name, value))


def with_signature_field(name: str, value: Any) -> bytes:
    return altered(lambda document: document["signatures"][0].__setitem__(name, value))


# Laws.


@few
@given(st.binary(max_size=300), st.integers(1, 255))
def test_what_is_signed_is_verified(payload: bytes, seed: int) -> None:
    signer = identity(seed)
    signed = Signed.parse(signer.sign(payload))
    assert signed.verify(signer.public) == payload == signed.payload
    assert signed.keyids == (signer.public.keyid,)


@many
@given(mutations(ENVELOPE))
def test_no_mutated_envelope_says_anything_else(raw: bytes) -> None:
    try:
        assert Signed.parse(raw).verify(KEY) == PAYLOAD
    except Refused as refused:
        assert refused.code in {Code.ENVELOPE_SCHEMA, Code.BAD_SIGNATURE}  # noqa: PT017 - either outcome is right


@many
@given(changed_json(ENVELOPE))
def test_no_envelope_with_a_changed_field_says_anything_else(raw: bytes) -> None:
    try:
        assert Signed.parse(raw).verify(KEY) == PAYLOAD
    except Refused as refused:
        assert refused.code in {Code.ENVELOPE_SCHEMA, Code.BAD_SIGNATURE}  # noqa: PT017 - as above


@pytest.mark.parametrize("field", ["payload", "sig"])
def test_every_flipped_bit_is_noticed(field: str) -> None:
    document = json.loads(ENVELOPE)
    raw = base64.b64decode(document["payload"] if field == "payload" else document["signatures"][0]["sig"])
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        text = base64.b64encode(flipped).decode()
        raw_envelope = with_field("payload", text) if field == "payload" else with_signature_field("sig", text)
        assert refusal(raw_envelope) is Code.BAD_SIGNATURE


@few
@given(st.sampled_from([None, 0, 1, 4, "\t"]), st.randoms())
def test_identity_is_the_payloads_whatever_the_envelope_is_spelt_like(indent: Any, chance: Any) -> None:
    fields = list(json.loads(ENVELOPE).items())
    chance.shuffle(fields)
    raw = json.dumps(dict(fields), indent=indent).encode() + b"\n"
    again = Signed.parse(raw)
    assert again.verify(KEY) == PAYLOAD
    assert again.digest == Signed.parse(ENVELOPE).digest


def test_another_signer_does_not_change_identity() -> None:
    assert Signed.parse(STRANGER.sign(PAYLOAD)).digest == Signed.parse(ENVELOPE).digest


def test_signing_is_deterministic() -> None:
    assert CONTRIBUTOR.sign(PAYLOAD) == ENVELOPE


def test_the_envelope_is_plain_dsse() -> None:
    assert Envelope.from_dict(json.loads(ENVELOPE)).payload == PAYLOAD
    message = b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(PAYLOAD), PAYLOAD)
    signature = base64.b64decode(json.loads(ENVELOPE)["signatures"][0]["sig"])
    Ed25519PublicKey.from_public_bytes(KEY.raw).verify(signature, message)


# One trap each.


@pytest.mark.parametrize("raw", [b"", b"\x00", b"[]", b"{}", b"null", b"1", b'"a"', b"not json"])
def test_what_is_no_envelope_is_refused(raw: bytes) -> None:
    assert refusal(raw) is Code.ENVELOPE_SCHEMA


def test_every_truncation_is_refused() -> None:
    for length in range(len(ENVELOPE)):
        assert refusal(ENVELOPE[:length]) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("value", [None, 1, 1.5, True, [], {}, ["a"], {"a": 1}, "é"])
@pytest.mark.parametrize("field", ["payload", "payloadType", "signatures"])
def test_a_field_of_another_type_is_refused(field: str, value: Any) -> None:
    assert refusal(with_field(field, value)) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("value", [None, 1, True, [], {}, "é"])
@pytest.mark.parametrize("field", ["keyid", "sig"])
def test_a_signature_field_of_another_type_is_refused(field: str, value: Any) -> None:
    assert refusal(with_signature_field(field, value)) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("entry", [None, 1, "a", [], {}])
def test_a_signature_of_another_type_is_refused(entry: Any) -> None:
    assert refusal(with_field("signatures", [entry])) is Code.ENVELOPE_SCHEMA


def test_unknown_fields_are_refused() -> None:
    assert refusal(with_field("comment", "")) is Code.ENVELOPE_SCHEMA
    assert refusal(with_signature_field("cert", "")) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("field", ["payload", "payloadType", "signatures"])
def test_missing_fields_are_refused(field: str) -> None:
    assert refusal(altered(lambda document: document.pop(field))) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("field", ["keyid", "sig"])
def test_missing_signature_fields_are_refused(field: str) -> None:
    assert refusal(altered(lambda document: document["signatures"][0].pop(field))) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("keyid", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 63 + "\n"])
def test_a_keyid_is_64_hexadecimal_digits(keyid: str) -> None:
    assert refusal(with_signature_field("keyid", keyid)) is Code.ENVELOPE_SCHEMA


def other_spellings(raw: bytes) -> list[str]:
    text = base64.b64encode(raw).decode()
    loose = text.replace("=", "")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".index(loose[-1])
    twin = loose[:-1] + base64.b64encode(bytes([(last | 1) << 2]))[:1].decode() + "=" * (len(text) - len(loose))
    url = base64.urlsafe_b64encode(raw).decode()
    return [loose, twin, url, text + "=", " " + text, text + "\n", text[:4] + "\n" + text[4:], text + text, text[:-1]]


def test_base64_has_one_spelling() -> None:
    payload = b"\xfb\xff\xfe?>"  # both letters that differ in the url-safe alphabet, and padding
    raw = CONTRIBUTOR.sign(payload)
    signature = base64.b64decode(json.loads(raw)["signatures"][0]["sig"])
    canonical = base64.b64encode(payload).decode()
    assert Signed.parse(raw).verify(KEY) == payload
    for spelling in other_spellings(payload):
        assert spelling != canonical
        document = json.loads(raw) | {"payload": spelling}
        assert refusal(json.dumps(document).encode()) is Code.ENVELOPE_SCHEMA, spelling
    for spelling in other_spellings(signature):
        if spelling != base64.b64encode(signature).decode():  # a signature may hold neither of + and /
            assert refusal(with_signature_field("sig", spelling)) is Code.ENVELOPE_SCHEMA, spelling


def test_one_to_eight_signatures() -> None:
    own = json.loads(ENVELOPE)["signatures"][0]
    others = [own | {"keyid": f"{number:064x}"} for number in range(MAX_SIGNATURES)]
    assert refusal(with_field("signatures", [])) is Code.ENVELOPE_SCHEMA
    assert refusal(with_field("signatures", [own, *others])) is Code.ENVELOPE_SCHEMA
    full = with_field("signatures", [*others[: MAX_SIGNATURES - 1], own])
    assert Signed.parse(full).verify(KEY) == PAYLOAD


def test_one_signature_a_key() -> None:
    own = json.loads(ENVELOPE)["signatures"][0]
    assert refusal(with_field("signatures", [own, own])) is Code.ENVELOPE_SCHEMA
    assert refusal(with_field("signatures", [own, own | {"sig": "AAAA"}])) is Code.ENVELOPE_SCHEMA


def test_a_repeated_json_key_is_refused() -> None:
    text = json.loads(ENVELOPE)["payload"]
    raw = ENVELOPE.replace(b'"payload":', f'"payload":"{text}","payload":'.encode(), 1)
    assert raw != ENVELOPE
    assert refusal(raw) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_are_none_are_refused(literal: bytes) -> None:
    assert refusal(ENVELOPE.replace(b'"payload":', b'"payload":' + literal + b',"x":', 1)) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("decoy", [b"", b'"' + b"]" * 20_000 + b'",'])
def test_ten_thousand_levels_are_refused(decoy: bytes) -> None:
    deep = b'{"signatures":[' + decoy + b"[" * 10_000 + b"]" * 10_000 + b"]}"
    assert refusal(deep) is Code.ENVELOPE_SCHEMA


def test_more_than_a_megabyte_is_refused() -> None:
    assert refusal(CONTRIBUTOR.sign(b" " * (1 << 20))) is Code.ENVELOPE_SCHEMA
    assert refusal(ENVELOPE + b" " * (1 << 20)) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("kind", ["application/json", "", PAYLOAD_TYPE.upper(), PAYLOAD_TYPE + " ", "é" * 28])
def test_another_payload_type_is_refused(kind: str) -> None:
    assert refusal(with_field("payloadType", kind)) is Code.ENVELOPE_SCHEMA


def test_a_signature_made_for_another_payload_type_is_refused() -> None:
    envelope = Envelope(PAYLOAD, "application/json", {})
    envelope.sign(CryptoSigner(Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32)))
    document = envelope.to_dict() | {"payloadType": PAYLOAD_TYPE}
    assert refusal(json.dumps(document).encode()) is Code.BAD_SIGNATURE


def test_a_malleable_signature_is_refused() -> None:
    order = 2**252 + 27742317777372353535851937790883648493  # RFC 8032, section 5.1
    signature = base64.b64decode(json.loads(ENVELOPE)["signatures"][0]["sig"])
    twin = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert refusal(with_signature_field("sig", base64.b64encode(twin).decode())) is Code.BAD_SIGNATURE


@pytest.mark.parametrize("length", [0, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    text = base64.b64encode(bytes(length)).decode()
    assert refusal(with_signature_field("sig", text)) is Code.BAD_SIGNATURE


def test_a_signature_of_another_document_is_refused() -> None:
    other = json.loads(CONTRIBUTOR.sign(b"another"))["signatures"][0]["sig"]
    assert refusal(with_signature_field("sig", other)) is Code.BAD_SIGNATURE


def test_the_right_keyid_over_another_keys_signature_is_refused() -> None:
    other = json.loads(STRANGER.sign(PAYLOAD))["signatures"][0]["sig"]
    assert refusal(with_signature_field("sig", other)) is Code.BAD_SIGNATURE


def test_another_keys_document_is_refused() -> None:
    assert refusal(STRANGER.sign(PAYLOAD)) is Code.BAD_SIGNATURE


def test_one_of_several_signatures_is_enough() -> None:
    own = json.loads(ENVELOPE)["signatures"]
    both = with_field("signatures", own + json.loads(STRANGER.sign(PAYLOAD))["signatures"])
    assert Signed.parse(both).verify(KEY) == Signed.parse(both).verify(STRANGER.public) == PAYLOAD
