"""`campaign --simulate N`: hundreds of virtual contributors, with the code of production."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.fleet.campaigns.driver import MAX_CRASHES
from coordinator.fleet.simulation.simulate import simulate
from protocol.fleet.campaign import APP_DIGEST, KINDS, Kind
from protocol.spec import Policy, Promotion


def test_two_hundred_nodes_of_which_some_fail_and_some_are_late(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    told = simulate(tmp_path, "train", 200, failing=0.1, late=0.1, seed=1)
    assert (told["answered"], len(told["failed"]), told["silent"]) == (180, 20, [])
    assert told["conclusion"].startswith(f"180 answered; failed: {told['failed'][0]} (UNREACHABLE), ")
    assert told["peak_mb"] < before + 200
    assert MAX_CRASHES > 1  # so each of the failing was asked again before it was given up


def test_memory_does_not_grow_with_the_crowd(tmp_path: Path) -> None:
    peaks = []
    for nodes in (5, 50):
        (tmp_path / str(nodes)).mkdir()
        peaks.append(simulate(tmp_path / str(nodes), "info", nodes)["peak_mb"])
    assert peaks[1] < peaks[0] + 20


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_answered_as_its_schema_wants(tmp_path: Path, kind: Kind) -> None:
    policy = Policy(apps=(APP_DIGEST,), promotion=Promotion(when="evaluated", min_nodes=2))
    told = simulate(tmp_path, kind, 5, policy=policy)
    assert told["answered"] == 5
    assert ("Promoted" in told["conclusion"]) == (kind == "evaluate")


def verb(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordinator.cli.main", "campaign", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_verb_does_the_same_and_leaves_the_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    options = ("--kind", "evaluate", "--failing", 0.2, "--late", 0.2, "-w", tmp_path / "empty", "--json")
    done = verb("--simulate", 10, *options)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["schema"] == 1
    assert list((tmp_path / "empty").iterdir()) == []
    policy = Policy(apps=(APP_DIGEST,))
    again = simulate(tmp_path, "evaluate", 10, failing=0.2, late=0.2, policy=policy)
    assert {name: told[name] for name in ("answered", "failed", "silent", "conclusion")} == {
        name: again[name] for name in ("answered", "failed", "silent", "conclusion")
    }


@pytest.mark.parametrize(("arguments", "sentence"), [((), "Usage"), (("--simulate", 3, "ls"), "stands alone")])
def test_a_simulation_is_nothing_else(arguments: tuple[object, ...], sentence: str) -> None:
    done = verb(*arguments)
    assert done.returncode == 2
    assert sentence in done.stdout + done.stderr
