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


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two keys under the passphrase `old`."""
    for variable in (keys.PASSPHRASE_VARIABLE, keys.NEW_PASSPHRASE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        keys.create(place, lambda _: "old")
    return places


def test_keys_change_their_passphrase_together_and_the_old_one_is_asked_for_once(
    two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, asked = [Identity.load(place, "old").public for place in two], list[str]()

    def person(prompt: str) -> str:
        asked.append(prompt)
        return "old"

    monkeypatch.setenv(keys.NEW_PASSPHRASE_VARIABLE, "new")
    keys.lock(two, person)
    assert [Identity.load(place, "new").public for place in two] == before
    assert len(asked) == 1
    # What an interrupted run has done is not done again; then all of them go without.
    keys.lock(two, nobody)
    monkeypatch.setenv(keys.NEW_PASSPHRASE_VARIABLE, "")
    keys.lock(two, lambda _: "new")
    assert [keys.is_locked(place) for place in two] == [False, False]


def test_whoever_does_not_know_the_old_passphrase_changes_no_key(
    two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [place.read_bytes() for place in two]
    with pytest.raises(Refused, match="Nobody is there to type the new passphrase") as refused:
        keys.lock(two, nobody)
    assert refused.value.code is Code.PASSPHRASE
    monkeypatch.setenv(keys.NEW_PASSPHRASE_VARIABLE, "new")
    with pytest.raises(Refused):
        keys.lock(two, lambda _: "wrong")
    two[1].write_text("no key any more")
    with pytest.raises(Refused) as refused:
        keys.lock(two, lambda _: "old")
    assert refused.value.code is Code.KEY_UNREADABLE
    assert two[0].read_bytes() == contents[0]
    with pytest.raises(Refused):
        keys.is_locked(two[1])


def test_a_person_types_the_new_passphrase_twice(two: list[Path]) -> None:
    answers = iter(["new", "new", "old"])
    keys.lock(two, lambda _: next(answers))
    assert all(keys.load(place, lambda _: "new") for place in two)
    assert all(map(keys.is_locked, two))


def test_a_key_is_made_once_under_the_passphrase_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, "right")
    made = keys.create(tmp_path / "key", lambda _: pytest.fail("asked"))
    assert Identity.load(tmp_path / "key", "right").public == made.public
    with pytest.raises(Refused) as refused:
        keys.create(tmp_path / "key", nobody)
    assert refused.value.code is Code.KEY_EXISTS
