"""Keys by hand, and the door that asks for them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocol.errors import Code, Refused
from router.cli.main import app
from router.serving.users.user_file import Users
from tests.router.verbs import call


def test_a_key_is_printed_once_listed_without_it_and_taken_back(tmp_path: Path) -> None:
    added = call("users", "add", "ada", "-w", tmp_path, "--requests", "60/minute")
    key = added.stdout.strip()
    assert Users(tmp_path).admit(f"Bearer {key}")
    assert key not in added.stderr
    shown = call("users", "ls", "-w", tmp_path)
    assert "60/minute requests" in shown.stdout
    assert key.rpartition("-")[2] not in shown.stdout
    call("users", "revoke", "ada", "-w", tmp_path)
    (row,) = json.loads(call("users", "ls", "-w", tmp_path, "--json").stdout)["users"]
    assert row["revoked"]
    again = json.loads(call("users", "add", "ada", "-w", tmp_path, "--json").stdout)
    assert Users(tmp_path).admit(f"Bearer {again['key']}")
    refused = CliRunner().invoke(app, ["users", "add", "ada", "-w", str(tmp_path)]).exception
    assert isinstance(refused, Refused)
    assert (refused.code, "revoke ada" in refused.hint) == (Code.KEY_EXISTS, True)


@pytest.mark.parametrize(
    ("flags", "users", "hint"),
    [
        ([], False, "users add"),
        ([], True, "--tls-cert"),
        (["--http-without-tls"], False, "--http-without-keys"),
    ],
)
def test_serve_opens_nothing_to_others_without_a_word(
    tmp_path: Path, flags: list[str], hint: str, *, users: bool
) -> None:
    if users:
        call("users", "add", "ada", "-w", tmp_path)
    line = ["serve", "-w", str(tmp_path), "--coordinator", "127.0.0.1:1", "--base", "b", "--listen", "127.0.0.1:0"]
    refused = CliRunner().invoke(app, [*line, "--http", "0.0.0.0:0", *flags]).exception
    assert isinstance(refused, Refused)
    assert (refused.code, hint in refused.hint) == (Code.SETTINGS_INVALID, True)
