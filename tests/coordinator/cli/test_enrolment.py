"""Who may submit, as an operator types it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from coordinator.fleet.records.fleet import Fleet
from coordinator.registry.registry import Registry
from coordinator.registry.tables import RotationRow
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.settings import load
from protocol.documents import RECOVERY_TYPE, Duty, Recovery, read_enrolment, read_of_pool, timestamp
from protocol.errors import Code
from protocol.fleet.attestation import Attestation, challenge
from protocol.fleet.node_key import NodeKey, bind, read_binding
from protocol.signing import Identity
from tests.coordinator.cli.test_main import SHAPES, Program, program, refused
from tests.coordinator.cli.test_processes import make_workspace
from tests.coordinator.contributor import enrolment

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


def test_a_lost_key_is_recovered_by_a_signed_decision(program: Program, tmp_path: Path) -> None:
    workspace, pool = make_workspace(tmp_path / "w", SHAPES)
    old, new, at = Identity.generate(), Identity.generate(), datetime.now(UTC)
    envelope, registry = enrolment(pool.digest, old, "ada"), Registry.open(load(workspace).database)
    registry.contributors.enrol(read_enrolment(envelope), envelope, state="active", now=at)
    (file := tmp_path / "enrolment.dsse.json").write_bytes(enrolment(pool.digest, new, "ada"))
    recover = ("contributors", "recover", "ada", str(file), "--reason", "The disk broke.")
    assert program(workspace, "contributors", "recover", "bob", *recover[3:]) == Code.REQUEST_INVALID.fate.exit
    refused(program, Code.REQUEST_INVALID)
    assert program(workspace, *recover) == 0
    assert program.out.strip() == new.public.hex
    (listed,) = program.json(workspace, "contributors", "ls")["contributors"]
    assert (listed["name"], listed["key"], listed["state"]) == ("ada", new.public.hex, "active")
    with registry.reading() as session:
        (row,) = session.scalars(select(RotationRow))
    registry.close()
    _, decision = read_of_pool(Recovery, RECOVERY_TYPE, row.envelope, pool, Duty.LOG)
    assert (decision.name, decision.old, decision.new) == ("ada", old.public.hex, new.public.hex)
    assert decision.reason == "The disk broke."
    assert program(workspace, *recover) == Code.NAME_TAKEN.fate.exit, "a second time there is nothing to recover"
    assert program(workspace, "contributors", "revoke", old.public.hex) == Code.KEY_ROTATED.fate.exit
    refused(program, Code.KEY_ROTATED)


def test_nodes_are_listed_with_what_their_machines_say(program: Program, tmp_path: Path) -> None:
    workspace, pool = make_workspace(tmp_path / "w", SHAPES)
    assert program.json(workspace, "contributors", "nodes")["nodes"] == []
    registry, at = Registry.open(load(workspace).database), datetime.now(UTC)
    ada, nodes = Identity.generate(), [NodeKey.generate() for _ in range(2)]
    envelope = enrolment(pool.digest, ada, "ada")
    registry.contributors.enrol(read_enrolment(envelope), envelope, state="active", now=at)
    for node, shown in zip(nodes, (None, Attestation(kind="report", evidence="AAAA")), strict=True):
        bound = bind(pool.digest, ada, node, timestamp(at), shown)
        Fleet(registry).nodes.bind(read_binding(bound), bound, now=at)
    registry.close()
    rows = {row["state"]: row for row in program.json(workspace, "contributors", "nodes")["nodes"]}
    assert [rows["revoked"][name] for name in ("contributor", "attestation", "evidence")] == ["ada", "", ""]
    assert [rows["active"][name] for name in ("contributor", "attestation", "evidence")] == ["ada", "report", "AAAA"]
    assert rows["active"]["challenge"] == challenge(pool.digest, ada.public, nodes[1].public)
    assert program(workspace, "contributors", "nodes") == 0
    assert "AAAA" not in program.out


def test_a_file_that_is_no_enrolment_recovers_nothing(program: Program, tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path / "w", SHAPES)
    (file := tmp_path / "enrolment.dsse.json").write_text("{}")
    recover = ("contributors", "recover", "ada", str(file), "--reason", "The disk broke.")
    assert program(workspace, *recover) == Code.ENVELOPE_SCHEMA.fate.exit
    file.unlink()
    assert program(workspace, *recover) == Code.SETTINGS_INVALID.fate.exit
