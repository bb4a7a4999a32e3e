"""Notes and checkpoints as C2SP specifies them."""

import base64
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Code, Refused
from protocol.log.checkpoint import log_keys, origin, read_checkpoint, sign_checkpoint
from protocol.log.leaf import LogLeaf, read_leaf
from protocol.log.note import Note, NoteKey, SignatureType, cosign, sign_note
from protocol.signing import PublicKey
from tests.protocol import samples
from tests.protocol.samples import CONTRIBUTOR, COORDINATOR, STRANGER

# The example in the documentation of golang.org/x/mod/sumdb/note.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
POOL = samples.pool()
ROOT = sha256(b"root").digest()
CHECKPOINT = sign_checkpoint(POOL, 5, ROOT, COORDINATOR)
RAW = CHECKPOINT.note.encode()
WITNESS = NoteKey("witness.example.org/w1", CONTRIBUTOR.public, SignatureType.WITNESS)
NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)


def refused(code: Code, raw: bytes) -> None:
    with pytest.raises(Refused) as found:
        read_checkpoint(raw, POOL)
    assert found.value.code is code


def test_a_note_of_another_implementation_verifies() -> None:
    key, note = NoteKey.parse(GO_KEY), Note.parse(GO_NOTE.encode())
    assert str(key) == GO_KEY
    assert note.verify(key) is None
    assert note.encode() == GO_NOTE.encode()
    with pytest.raises(Refused) as found:
        Note.parse(GO_NOTE.replace("answer", "cause").encode()).verify(key)
    assert found.value.code is Code.BAD_SIGNATURE


def test_a_checkpoint_says_origin_size_and_root() -> None:
    found = read_checkpoint(RAW, POOL)
    assert (found.size, found.root, found.text()) == (5, ROOT, RAW.decode())
    assert RAW.decode().split("\n")[:4] == [origin(POOL.digest), "5", base64.b64encode(ROOT).decode(), ""]
    assert sign_checkpoint(POOL, 5, ROOT, COORDINATOR) == CHECKPOINT


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"\n5\n", b"\n05\n"),
        (b"\n5\n", b"\n+5\n"),
        (b"\n5\n", b"\n-5\n"),
        (b"\n5\n", b"\n5\r\n"),
        (b"\n5\n", b"\n99999999999999999\n"),
        (b"\n\n", b"\nextension\n\n"),
        (b"\n\n", b"\n"),
        (b"=\n\n", b"\n\n"),
        ("—".encode(), b"-"),
        (b"greylag", b"\xff"),
    ],
)
def test_another_spelling_is_refused(before: bytes, after: bytes) -> None:
    refused(Code.SPEC_INVALID, RAW.replace(before, after, 1))


def test_other_bytes_are_no_checkpoint() -> None:
    for raw in (b"", b"\n", RAW[:-1], RAW + b"\n", RAW + b"x" * (1 << 14), RAW + "— a b\n".encode(), RAW[:-2] + b"!\n"):
        refused(Code.SPEC_INVALID, raw)
    refused(Code.SPEC_INVALID, CHECKPOINT.note.text.encode() + b"\n" + "— x QUJDRA==\n".encode() * 65)


def test_only_the_pools_key_and_the_pools_log_count() -> None:
    refused(Code.BAD_SIGNATURE, RAW.replace(b"\n5\n", b"\n6\n"))
    refused(Code.BAD_SIGNATURE, sign_checkpoint(POOL, 5, ROOT, STRANGER).note.encode())
    refused(Code.WRONG_POOL, sign_checkpoint(samples.pool(name="other"), 5, ROOT, COORDINATOR).note.encode())
    one_wrong = CHECKPOINT.note.with_signatures([(origin(POOL.digest), log_keys(POOL)[0].identifier + bytes(64))])
    refused(Code.BAD_SIGNATURE, one_wrong.encode())


def test_a_witness_signs_time_and_text() -> None:
    note = cosign(CHECKPOINT.note, WITNESS.name, CONTRIBUTOR, now=NOON)
    assert note.verify(WITNESS) == NOON
    assert read_checkpoint(note.encode(), POOL).note == note
    name, line = note.signatures[1]
    assert (name, line[:4]) == (WITNESS.name, WITNESS.identifier)
    message = f"cosignature/v1\ntime {int(NOON.timestamp())}\n{note.text}".encode()
    assert CONTRIBUTOR.public.has_signed(message, line[12:])
    assert note.with_signatures(note.signatures) == note
    later = line[:4] + (int(NOON.timestamp()) + 1).to_bytes(8, "big") + line[12:]
    for wrong in (later, line[:8], line[:4] + b"\xff" * 8 + line[12:]):
        with pytest.raises(Refused) as found:
            Note(note.text, ((name, wrong),)).verify(WITNESS)
        assert found.value.code is Code.BAD_SIGNATURE


def test_a_logs_signature_is_no_witnesss() -> None:
    as_log = NoteKey(WITNESS.name, WITNESS.public, SignatureType.LOG)
    assert as_log.identifier != WITNESS.identifier
    note = sign_note(CHECKPOINT.note.text, WITNESS.name, CONTRIBUTOR)
    assert (note.signed_by(as_log), note.signed_by(WITNESS)) == (True, False)
    with pytest.raises(Refused):
        note.verify(WITNESS)


def test_keys_have_one_spelling() -> None:
    text = str(WITNESS)
    assert NoteKey.parse(text) == WITNESS
    strange = bytes([7]) + WITNESS.public.raw
    for wrong in ("", "a", text[1:], text.replace("+", "+0", 1), text[:-1], text.rpartition("+")[0],
                  f"a+00000000+{base64.b64encode(strange).decode()}"):  # fmt: skip
        with pytest.raises(Refused) as found:
            NoteKey.parse(wrong)
        assert found.value.code in (Code.KEY_TYPE, Code.SETTINGS_INVALID)
    with pytest.raises(Refused) as found:
        NoteKey("a+b", PublicKey(CONTRIBUTOR.public.raw), SignatureType.WITNESS)
    assert found.value.code is Code.SETTINGS_INVALID


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read_back(raw: bytes) -> None:
    for tried in (raw, RAW + raw, RAW[:100] + raw):
        with suppress(Refused):
            assert Note.parse(tried).encode() == tried


def test_an_entry_is_read_as_it_was_written() -> None:
    leaf = LogLeaf(
        number=7, at="2026-12-01T12:00:00Z", kind="bundle", subject="4" * 64, step="received", actor="contributor",
        code="",
    )  # fmt: skip
    assert read_leaf(leaf.encode()) == leaf
    assert leaf.encode() == (
        b'{"actor":"contributor","at":"2026-12-01T12:00:00Z","code":"","kind":"bundle","number":7,'
        b'"step":"received","subject":"' + b"4" * 64 + b'"}'
    )
    for wrong in (b"{}", b"x", leaf.encode()[:-1] + b',"x":1}', b" " * 2000):
        with pytest.raises(Refused) as found:
            read_leaf(wrong)
        assert found.value.code is Code.SPEC_INVALID


def test_base64_has_one_spelling() -> None:
    """The last letter before the padding has bits that say nothing: whoever changed them would have a second note."""
    root = base64.b64encode(ROOT)
    twin = root[:-2] + bytes([root[-2] + 1]) + b"="
    assert base64.b64decode(twin) == ROOT
    text = CHECKPOINT.note.text.replace(root.decode(), twin.decode())
    refused(Code.SPEC_INVALID, sign_note(text, origin(POOL.digest), COORDINATOR).encode())
    line = RAW[:-1].rpartition(b" ")[2]
    twin = line[:-2] + bytes([line[-2] + 1]) + b"="
    assert base64.b64decode(twin) == base64.b64decode(line)
    refused(Code.SPEC_INVALID, RAW.replace(line, twin))
    refused(Code.SPEC_INVALID, RAW.replace(line, b"QUJDRA=="))  # a key's digest, and nothing signed
