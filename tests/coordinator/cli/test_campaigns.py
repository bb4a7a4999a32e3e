"""The verbs of campaigns and candidates, as an operator types them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog
from sqlalchemy import update

from coordinator.cli.output import opened_workspace
from coordinator.fleet.simulation.simulate import propose
from coordinator.registry.tables import Candidate
from coordinator.workspace.create import BaseFacts, found
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.adapters import Shape
from protocol.fleet.reply import Reply
from tests.coordinator.cli.test_main import Program
from tests.coordinator.cli.test_processes import BASE
from tests.coordinator.fleet.campaigns.test_driver import Town


@pytest.fixture
def workspace(tmp_path: Path) -> CoordinatorWorkspace:
    """Of a pool whose candidates are evaluated."""
    workspace = CoordinatorWorkspace(tmp_path / "w")
    facts = BaseFacts("nowhere", BASE, "encoder-decoder", {"m": Shape(d_in=8, d_out=8)})
    choices = {"policy": {"promotion": {"when": "evaluated"}}}
    found(workspace, lambda: facts, name="p", choices=choices, settings={}, now=datetime.now(UTC))
    return workspace


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    yield Program(capsys, monkeypatch)
    structlog.reset_defaults()


def voted(workspace: CoordinatorWorkspace, program: Program, votes: int) -> None:
    """Start an evaluation that some contributors answer, and one whose daemon is away does not."""
    with opened_workspace(workspace.folder) as open_:
        propose(open_, datetime.now(UTC))
        assert program(workspace, "campaign", "start", "evaluate") == 0
        town = Town(open_)
        for at in range(votes):
            town.join(f"node-{at}", lambda _: Reply(metrics={"loss_candidate": 0.5, "loss_base": 1.0}))
        town.join("away", lambda _: Reply()).up = False
        town.drive(lambda: list(town.states(1).values()) == ["done"] * votes)
        town.driver.lose_runs()
        town.grid.close()


def test_who_stops_an_evaluation_does_not_lose_its_votes(program: Program, workspace: CoordinatorWorkspace) -> None:
    voted(workspace, program, 3)
    assert program(workspace, "campaign", "stop") == 0
    said = "Stopped by the operator. 3 answered; not there in time: away. Promoted: median change of loss -0.5000"
    assert f"Campaign 1 is over. {said}" in program.err
    shown = program.json(workspace, "campaign", "show")["campaign"]
    assert (shown["state"], shown["conclusion"].startswith(said)) == ("stopped", True)
    assert [row["state"] for row in program.json(workspace, "candidates", "ls")["candidates"]] == ["promoted"]
    assert program(workspace, "campaign", "stop") == 0  # it is over, and stays as it is
    assert program.json(workspace, "campaign", "show")["campaign"] == shown


def test_who_stops_an_evaluation_too_early_reads_why_nothing_is_decided(
    program: Program, workspace: CoordinatorWorkspace
) -> None:
    voted(workspace, program, 1)
    assert program(workspace, "campaign", "stop") == 0
    assert "1 answered; not there in time: away. Nothing is decided: 2 nodes are needed." in program.err
    assert [row["state"] for row in program.json(workspace, "candidates", "ls")["candidates"]] == ["open"]


def test_one_damaged_candidate_hides_no_other(program: Program, workspace: CoordinatorWorkspace) -> None:
    with opened_workspace(workspace.folder) as open_:
        propose(open_, datetime.now(UTC))
        with open_.registry.writing() as session:
            session.execute(update(Candidate).values(envelope=b"rotten"))
        propose(open_, datetime.now(UTC), experts=1)
    rows = program.json(workspace, "candidates", "ls")["candidates"]
    assert [(row["state"], row["reason"] != "") for row in rows] == [("overtaken", True), ("open", False)]
