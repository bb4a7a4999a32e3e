"""The arrows between rooms are checked, and the check can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.sources import ROOMS, ROOT

BREACHES = {
    "protocol/spec.py": "import torch",
    "router/pool/gate.py": "import client.training.pipeline",
    "client/bundle/pack.py": "import client.data.examples",
    "coordinator/serving/intake_service.py": "import client.workspace.settings",
    "coordinator/policy/next_release.py": "import router.model.routed_model",
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache", "--config", "pyproject.toml"], cwd=folder, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_house_keeps_its_contracts(copy: Path) -> None:
    result = lint(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", BREACHES)
def test_a_planted_breach_is_caught(copy: Path, path: str) -> None:
    with (copy / path).open("a") as file:
        file.write(f"\n{BREACHES[path]}\n")
    result = lint(copy)
    assert result.returncode != 0
    assert "BROKEN" in result.stdout
