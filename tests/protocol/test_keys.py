import os
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_ssh_public_key,
)
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import SSlibKey

from protocol.errors import Code, Refused
from protocol.signing import Identity, PublicKey
from tests.protocol.samples import CONTRIBUTOR, STRANGER, identity
from tests.protocol.strategies import few

# Public keys.

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
L = 2**252 + 27742317777372353535851937790883648493


def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Add two points of edwards25519 (RFC 8032, section 5.1.4, affine)."""
    product = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + product, -1, P) % P
    return x, (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P) % P


def times(scalar: int, point: tuple[int, int]) -> tuple[int, int]:
    total = (0, 1)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point, scalar = add(point, point), scalar >> 1
    return total


def point_at(y: int) -> tuple[int, int] | None:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    for x in (root, root * pow(2, (P - 1) // 4, P) % P):
        if x * x % P == square:
            return x, y
    return None


def small_order_encodings() -> set[bytes]:
    """Every 32-byte spelling of the eight points that eight times themselves are nothing."""
    for y in range(2, 200):
        if (point := point_at(y)) and times(4, generator := times(L, point)) != (0, 1):
            break
    ys = {times(number, generator)[1] for number in range(8)}
    spellings = {y + extra for y in ys for extra in (0, P) if y + extra < 2**255}
    return {(y | sign << 255).to_bytes(32, "little") for y in spellings for sign in (0, 1)}


def test_every_key_of_small_order_is_refused_in_every_spelling() -> None:
    encodings = small_order_encodings()
    assert len(encodings) == 14
    for raw in encodings:
        with pytest.raises(Refused) as refused:
            PublicKey(raw)
        assert refused.value.code is Code.WEAK_KEY
        with pytest.raises(Refused):
            PublicKey.from_hex(raw.hex())


def test_why_keys_of_small_order_are_refused() -> None:
    universal = bytes([1]) + bytes(63)
    fooled = 0
    for raw in small_order_encodings():
        for message in (b"any", b"message"):
            try:
                Ed25519PublicKey.from_public_bytes(raw).verify(universal, message)
            except InvalidSignature:
                continue
            fooled += 1
    assert fooled > 0


@few
@given(st.integers(1, 255))
def test_a_public_key_reads_back_from_each_of_its_forms(seed: int) -> None:
    key = identity(seed).public
    raw = Ed25519PublicKey.from_public_bytes(key.raw)
    assert key == PublicKey.from_hex(key.hex)
    assert load_ssh_public_key(key.openssh.encode()) == raw
    assert key.keyid == SSlibKey.from_crypto(raw).keyid


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, "ab" * 31, "ab" * 33, "é" * 64])
def test_a_public_key_is_64_hexadecimal_digits(text: str) -> None:
    with pytest.raises(Refused) as refused:
        PublicKey.from_hex(text)
    assert refused.value.code is Code.KEY_TYPE


def other_keys() -> list[Any]:
    return [
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP256R1()),
        ed448.Ed448PrivateKey.generate(),
        x25519.X25519PrivateKey.generate(),
    ]


# Private keys.

SECRET = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
LOCK = BestAvailableEncryption(b"open sesame")
FORMATS = [PrivateFormat.PKCS8, PrivateFormat.OpenSSH]


def written(path: Path, form: PrivateFormat, lock: KeySerializationEncryption, key: Any = SECRET) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, form, lock))
    return path


def load_refusal(path: Path, passphrase: str | None = None) -> Refused:
    with pytest.raises(Refused) as refused:
        Identity.load(path, passphrase)
    assert str(path) in refused.value.message
    return refused.value


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_a_private_key_is_read(tmp_path: Path, form: PrivateFormat) -> None:
    assert Identity.load(written(tmp_path / "key", form, NoEncryption())).public == identity(9).public
    assert Identity.load(written(tmp_path / "key", form, LOCK), "open sesame").public == identity(9).public


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("passphrase", ["wrong", None, ""])
def test_a_locked_key_needs_its_passphrase(tmp_path: Path, form: PrivateFormat, passphrase: str | None) -> None:
    error = load_refusal(written(tmp_path / "key", form, LOCK), passphrase)
    assert error.code is Code.PASSPHRASE
    assert "GREYLAG_KEY_PASSPHRASE" in error.hint
    assert ("another" in error.message) == (passphrase == "wrong")


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_a_passphrase_for_an_open_key_is_told_apart(tmp_path: Path, form: PrivateFormat) -> None:
    error = load_refusal(written(tmp_path / "key", form, NoEncryption()), "open sesame")
    assert error.code is Code.PASSPHRASE
    assert "not encrypted" in error.message


def test_private_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for key in other_keys():
        path = written(tmp_path / "key", PrivateFormat.PKCS8, NoEncryption(), key)
        assert load_refusal(path).code is Code.KEY_TYPE


def test_a_missing_key_or_a_folder_is_refused(tmp_path: Path) -> None:
    assert load_refusal(tmp_path / "none").code is Code.KEY_UNREADABLE
    assert load_refusal(tmp_path).code is Code.KEY_UNREADABLE


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\xff\x00", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"BEGIN OPENSSH"],
)
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    assert load_refusal(tmp_path / "key").code is Code.KEY_UNREADABLE
    assert load_refusal(tmp_path / "key", "secret").code is Code.KEY_UNREADABLE


@pytest.mark.parametrize("passphrase", [None, "é secret"])
def test_a_saved_key_is_its_owners_alone(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        CONTRIBUTOR.save(path, passphrase)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(path, passphrase).public == CONTRIBUTOR.public
    assert bool(passphrase) == (b"ENCRYPTED" in path.read_bytes())


def test_a_saved_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    CONTRIBUTOR.save(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        STRANGER.save(path)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        STRANGER.save(tmp_path / "link")
    assert path.read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        CONTRIBUTOR.save(tmp_path / "key")
    assert not list(tmp_path.iterdir())


def test_generated_keys_differ_and_show_nothing() -> None:
    first, second = Identity.generate(), Identity.generate()
    assert first.public != second.public
    assert not re.search("[0-9a-f]{64}", repr(first))


def test_a_secret_is_one_keys_for_one_purpose() -> None:
    secrets = {key.secret(purpose) for key in (CONTRIBUTOR, STRANGER) for purpose in (b"one", b"other")}
    assert {len(each) for each in secrets} == {32}
    assert len(secrets) == 4
    assert CONTRIBUTOR.secret(b"one") == identity(2).secret(b"one"), "a restart draws the same"
