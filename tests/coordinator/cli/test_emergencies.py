"""An operator shuts a pool, and opens it again, by the program's verbs."""

from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.bundle import Bundle
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
