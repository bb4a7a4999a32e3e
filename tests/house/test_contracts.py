"""The arrows between rooms are checked, and the check can fail."""

import re
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tests.house.sources import ROOMS, ROOT

# One import that runs up, or out of the house, in each room.
BREACHES = {
    "protocol/spec.py": "import torch",
    "protocol/errors.py": "import protocol.fleet.campaign",
    "protocol/wire/chunks.py": "import protocol.bundle",
    "router/base/linear.py": "import router.pool.pool",
    "router/query/request.py": "import torch",
    "router/pool/gate.py": "import client.job",
    "router/pool/pool.py": "import router.layer.topk",
    "router/layer/topk.py": "import router.methods.registry",
    "router/methods/arrow.py": "import router.model.planner",
    "router/methods/features/nnls.py": "import router.training.calibrate",
    "router/training/calibrate.py": "import router.methods.arrow",
    "router/follow/pull.py": "import router.model.routed_model",
    "router/model/planner.py": "import router.serving.process",
    "router/serving/process.py": "import router.evaluation.rows",
    "router/evaluation/rows.py": "import router.cli.main",
    "client/data/files.py": "import client.workspace.paths",
    "client/workspace/paths.py": "import client.training.plan",
    "client/runs/record.py": "import client.submission.join",
    "client/bundle/pack.py": "import client.data.files",
    "client/submission/upload.py": "import client.training.plan",
    "client/training/plan.py": "import client.job",
    "client/job.py": "import client.daemon.state",
    "client/daemon/state.py": "import client.cli.main",
    "coordinator/policy/lifecycle.py": "import coordinator.registry.tables",
    "coordinator/admission/check.py": "import router.pool.gate",
    "coordinator/storage/blobs.py": "import coordinator.registry.registry",
    "coordinator/registry/registry.py": "import coordinator.workspace.paths",
    "coordinator/workspace/create.py": "import coordinator.fleet.service",
    "coordinator/fleet/records/fleet.py": "import coordinator.fleet.calibration.rounds",
    "coordinator/fleet/campaigns/start.py": "import coordinator.fleet.service",
    "coordinator/serving/intake.py": "import coordinator.review.worker",
    "coordinator/review/worker.py": "import coordinator.cli.main",
    "coordinator/conformance/stage.py": "import coordinator.registry.registry",
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache", "--config", "pyproject.toml"], cwd=folder, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture(scope="module")
def said(copy: Path) -> str:
    """What the linter says of a house with every breach in it."""
    for path, breach in BREACHES.items():
        with (copy / path).open("a") as file:
            file.write(f"\n{breach}\n")
    result = lint(copy)
    assert result.returncode != 0
    return result.stdout


def test_the_house_keeps_its_contracts() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", BREACHES)
def test_a_planted_breach_is_caught(said: str, path: str) -> None:
    importer, imported = path.removesuffix(".py").replace("/", "."), BREACHES[path].removeprefix("import ")
    assert re.search(rf"\b{re.escape(importer)} -> {re.escape(imported)}\b", said)


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Name the modules of a circle, if there is one."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph(*ROOMS, cache_dir=None)
    assert circle({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}) == []


def test_a_circle_is_found_out() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}
