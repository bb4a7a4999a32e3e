"""Who may submit, as an operator types it."""

from pathlib import Path

import pytest

from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.errors import Code
from tests.coordinator.cli.test_main import SHAPES, Program, program, refused
from tests.coordinator.cli.test_processes import make_workspace

__all__ = ["program"]


@pytest.fixture
def invited(tmp_path: Path) -> CoordinatorWorkspace:
    """A pool that takes new keys by invitation."""
    return make_workspace(tmp_path / "w", SHAPES, enrolment="invite")[0]


def test_an_invite_from_make_to_revoke(program: Program, invited: CoordinatorWorkspace) -> None:
    assert program(invited, "invites", "make") == 0
    (token,) = program.out.split()
    made = program.json(invited, "invites", "make", "--uses", "5", "--days", "30", "--note", "north")
    assert (made["uses"], made["note"], made["token"][:8]) == (5, "north", made["name"])
    assert program(invited, "invites", "revoke", token[:8]) == 0
    told = {row["name"]: row for row in program.json(invited, "invites", "ls")["invites"]}
    assert {row["state"] for row in told.values()} == {"revoked", "open"}
    assert told[token[:8]] == {
        "name": token[:8], "state": "revoked", "used": 0, "uses": 1, "contributors": [], "note": "",
        "made": told[token[:8]]["made"], "expires": told[token[:8]]["expires"],
    }  # fmt: skip
    assert program(invited, "invites", "ls") == 0
    assert token[9:] not in program.out + program.err
    assert program(invited, "invites", "revoke", "00000000") == Code.INVITE.fate.exit
    refused(program, Code.INVITE)


def test_an_open_pool_needs_no_invites(program: Program, tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "w", SHAPES)
    assert program(workspace, "invites", "make") == Code.SETTINGS_INVALID.fate.exit
    refused(program, Code.SETTINGS_INVALID)
    assert program.json(workspace, "invites", "ls") == {"schema": 1, "invites": []}


@pytest.mark.parametrize("flag", [("--note", "two\nlines"), ("--note", "x" * 201), ("--uses", "0"), ("--days", "0")])
def test_an_invite_that_makes_no_sense_is_a_usage_error(
    program: Program, invited: CoordinatorWorkspace, flag: tuple[str, str]
) -> None:
    assert program(invited, "invites", "make", *flag) == 2
    assert program.json(invited, "invites", "ls")["invites"] == []
