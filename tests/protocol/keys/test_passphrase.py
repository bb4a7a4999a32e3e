"""Keys and passphrases: a person is asked only where one sits."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from protocol.errors import Code, Refused
from protocol.keys import passphrase as keys
from protocol.signing import Identity


def nobody(_: str) -> None:
    return None


def test_a_person_is_asked_for_the_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keys.PASSPHRASE_VARIABLE, raising=False)
    made = keys.create(tmp_path / "key", lambda _: "right")
    assert keys.load(tmp_path / "key", lambda _: "right").public == made.public
    for ask in (nobody, lambda _: "wrong"):
        with pytest.raises(Refused) as refused:
            keys.load(tmp_path / "key", ask)
        assert refused.value.code is Code.PASSPHRASE


def test_two_answers_must_agree(tmp_path: Path) -> None:
    answers = iter(["one", "two"])
    with pytest.raises(Refused, match="differ"):
        keys.create(tmp_path / "key", lambda _: next(answers))
    assert not (tmp_path / "key").exists()


def test_nobody_at_the_terminal_means_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _: pytest.fail("asked"))
    assert keys.ask_on_terminal("Passphrase: ") is None


def test_openssh_keys_are_read(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    assert keys.load(tmp_path / "key", nobody).public == Identity(key).public


def test_a_missing_key_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        keys.load(tmp_path / "gone", nobody)
    assert refused.value.code is Code.KEY_UNREADABLE
