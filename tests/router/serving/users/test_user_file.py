"""Keys over their lives: made, used, taken back, made again, beside a router that runs."""

import stat
from pathlib import Path

import pytest

from protocol.errors import Code, GreylagError, Refused
from router.serving.users.user_file import FILE, Users, add_user, read_users, revoke_user


def found(users: Users, key: str) -> str | None:
    user = users.admit(f"Bearer {key}")
    return user.name if user else None


def code_of(users: Users, key: str | None) -> Code:
    with pytest.raises(GreylagError) as refused:
        users.admit(None if key is None else f"Bearer {key}")
    return refused.value.code


def test_a_key_is_shown_once_and_kept_as_a_digest_that_others_cannot_read(tmp_path: Path) -> None:
    user, key = add_user(tmp_path, "ada", requests="2/minute")
    file = tmp_path / FILE
    assert key not in file.read_text()
    assert key.rpartition("-")[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Users(tmp_path).admit(f"bearer {key}") == user
    assert read_users(tmp_path) == (user,)


def test_a_running_router_learns_of_new_revoked_and_returned_users_at_once(tmp_path: Path) -> None:
    users = Users(tmp_path)
    assert (users.admit(None), found(users, "anything")) == (None, None)  # nobody yet: no key is asked for
    _, first = add_user(tmp_path, "ada")
    assert code_of(users, None) is Code.USER_KEY
    assert found(users, first) == "ada"
    revoke_user(tmp_path, "ada")
    assert code_of(users, first) is Code.USER_KEY
    _, second = add_user(tmp_path, "ada")
    assert found(users, second) == "ada"
    assert code_of(users, first) is Code.USER_KEY
    (tmp_path / FILE).unlink()  # what is lost opens nothing
    assert code_of(users, second) is Code.USER_KEY
    assert code_of(users, None) is Code.USER_KEY


def test_a_key_stays_its_owners_whatever_happens_to_others(tmp_path: Path) -> None:
    _, ada = add_user(tmp_path, "ada")
    _, bob = add_user(tmp_path, "bob")
    with pytest.raises(Refused) as refused:
        add_user(tmp_path, "ada")
    assert refused.value.code is Code.KEY_EXISTS
    revoked = revoke_user(tmp_path, "ada")
    assert revoke_user(tmp_path, "ada") == revoked  # twice is once
    users = Users(tmp_path)
    assert found(users, bob) == "bob"
    for wrong in (ada, bob[:-1], bob + "x", ada.replace(ada.split("-")[1], bob.split("-")[1]), "", "-", "\xff"):
        assert code_of(users, wrong) is Code.USER_KEY
    with pytest.raises(Refused) as refused:
        revoke_user(tmp_path, "eve")
    assert refused.value.code is Code.USER_UNKNOWN


@pytest.mark.parametrize("limit", ["often", "0/minute", "1/fortnight"])
def test_limits_that_are_none_make_no_user(tmp_path: Path, limit: str) -> None:
    with pytest.raises(Refused) as refused:
        add_user(tmp_path, "ada", tokens=limit)
    assert refused.value.code is Code.REQUEST_INVALID
    with pytest.raises(Refused) as refused:
        add_user(tmp_path, "Ada\n")
    assert refused.value.code is Code.SPEC_INVALID
    assert read_users(tmp_path) == ()


def test_a_damaged_file_lets_nobody_in_until_it_is_mended(tmp_path: Path) -> None:
    _, key = add_user(tmp_path, "ada")
    users, whole = Users(tmp_path), (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-10])
    assert code_of(users, key) is Code.CLOSED
    assert code_of(users, key) is Code.CLOSED
    (tmp_path / FILE).write_bytes(whole)
    assert found(users, key) == "ada"
