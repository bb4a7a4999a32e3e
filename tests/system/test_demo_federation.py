"""`make demo-federation`, as a person would run it (slow: four minutes)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.federation.__main__ import LATE, ROWS
from tests.house.sources import ROOT
from tests.system.test_demo import left_running

pytestmark = pytest.mark.slow


@pytest.mark.timeout(700)
def test_the_federation_shows_what_it_promises(tmp_path: Path) -> None:
    folder = tmp_path / "demo-federation"
    done = subprocess.run(
        [sys.executable, "-m", "deploy.federation", "--folder", folder], cwd=ROOT, text=True, check=False, timeout=680,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((folder / "report.json").read_text())
    assert report["nodes"] == len(ROWS) + 1
    assert report["campaigns"]["train"]["bundles"] == len(ROWS) + 1
    assert len(report["campaigns"]["evaluate"]["promoted"]) == 2
    calibrated = report["campaigns"]["calibrate"]
    assert calibrated["loss_after"] < calibrated["loss_before"]
    assert calibrated["rounds"] == [{"answered": sorted([*ROWS, LATE]), "late": []}] * 3
    assert len(report["campaigns"]["evaluate"]["held_back"]) == 1
    assert report["release"] == 2
    assert len(report["attacks"]) == 9
    assert all(attack["blocked"] for attack in report["attacks"])
    assert report["planted_strings_found"] == 0
    assert report["seconds"] < 600
    assert left_running(folder) == []
