"""An operator shuts a pool, and opens it again, by the program's verbs."""

from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.bundle import Bundle
from protocol.errors import Code
from tests.coordinator.cli.test_main import Program, bundle, founded, program, workspace

__all__ = ["bundle", "founded", "program", "workspace"]  # fixtures


def test_a_frozen_pool_lets_nobody_in_until_it_thaws(
    program: Program, workspace: CoordinatorWorkspace, bundle: Bundle
) -> None:
    for reason in ("A key was stolen.", "Two keys were stolen."):
        assert program(workspace, "pool", "freeze", "--reason", reason) == 0
    assert program(workspace, "experts", "accept", bundle.digest[:8]) != 0
    assert "Two keys were stolen." in program.err
    assert "[CLOSED]" in program.err
    assert program(workspace, "intake", "on") == 0  # another switch opens nothing here
    assert program(workspace, "experts", "accept", bundle.digest[:8]) != 0
    for _ in range(2):
        assert program(workspace, "pool", "thaw") == 0
    assert program(workspace, "experts", "accept", bundle.digest[:8]) == 0


def test_what_was_refused_comes_again_only_when_an_operator_lifts_it(
    program: Program, workspace: CoordinatorWorkspace, bundle: Bundle
) -> None:
    assert program(workspace, "experts", "refuse", bundle.digest[:8], "--reason", "Copied text.") == 0
    for _ in range(2):
        assert program(workspace, "experts", "unblock", bundle.digest[:8]) == 0
    shown = program.json(workspace, "experts", "show", bundle.digest)
    assert [event["step"] for event in shown["events"]][-3:] == ["refused", "unblocked", "unblocked"]
    assert program(workspace, "experts", "unblock", "00000000") == 66


def test_a_read_only_registry_is_checked_and_nothing_else(
    program: Program, workspace: CoordinatorWorkspace, bundle: Bundle
) -> None:
    assert program(workspace, "pool", "read-only", "--reason", "We move to another machine.") == 0
    for verb in (
        ["experts", "refuse", bundle.digest[:8], "--reason", "No."], ["contributors", "revoke", "ada"],
        ["fsck", "--delete", "0"], ["pool", "freeze", "--reason", "No."],
    ):  # fmt: skip
        expected = 0 if verb[:2] == ["pool", "freeze"] else Code.CLOSED.fate.exit
        assert program(workspace, *verb) == expected, verb
    assert "We move to another machine." not in program.out
    told = program.json(workspace, "experts", "show", bundle.digest)["expert"]
    assert told["state"] == "quarantined"
    (listed,) = program.json(workspace, "contributors", "ls")["contributors"]
    assert listed["state"] == "active"
    program(workspace, "fsck", "--json")
    assert "log_faults" in program.out
    assert program(workspace, "log", "verify") == 0
    assert program(workspace, "pool", "read-write") == 0
    assert program(workspace, "contributors", "revoke", "ada") == 0


def test_read_only_then_an_older_copy_restored(program: Program, workspace: CoordinatorWorkspace) -> None:
    registry = workspace.folder / "registry.db"
    assert program(workspace, "pool", "read-only", "--reason", "We move.") == 0
    backup = registry.read_bytes()
    for verb in ("read-write", "thaw", "freeze"):
        assert program(workspace, "pool", verb, *(["--reason", "No."] if verb == "freeze" else [])) == 0
    registry.write_bytes(backup)
    assert program(workspace, "fsck", "--adopt") == Code.CLOSED.fate.exit, "the copy is read-only itself"
    assert program(workspace, "pool", "read-write") == 0
    assert program(workspace, "fsck", "--adopt") == 0
    assert program(workspace, "fsck") == 0
