"""`init --layers`: a pool lists the modules of the layers that were asked for, or a sentence says which there are."""

import re
from pathlib import Path

import pytest

from coordinator.workspace.paths import CoordinatorWorkspace
from protocol.documents import read_pool
from protocol.errors import Code
from router.base.linear import linear_modules
from router.base.loading import load_base
from tests.coordinator.cli.test_main import Program, program, refused

__all__ = ["program"]


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize(("asked", "kept"), [("1", {1}), ("1-", {1}), ("0-0", {0}), ("0-1", {0, 1})])
def test_a_pool_of_some_layers_lists_their_modules_alone(
    program: Program, tmp_path: Path, request: pytest.FixtureRequest, family: str, asked: str, kept: set[int]
) -> None:
    base: Path = request.getfixturevalue(f"{family}_base")
    workspace = CoordinatorWorkspace(tmp_path / "pool")
    assert program(workspace, "init", "--single", "--name", "p", "--base", str(base), "--layers", asked) == 0
    found = read_pool(workspace.pool.read_bytes()).spec.modules
    whole = linear_modules(load_base(str(base), device="cpu").model)
    # Every number of these tiny models' paths but T5's sub-layers is a layer's.
    expected = {path for path in whole if int(re.findall(r"\.([0-9]+)\.", path)[0]) in kept}
    assert set(found) == expected
    assert all(found[path] == whole[path] for path in expected)


@pytest.mark.parametrize(("asked", "absent"), [("2", "2"), ("1-2", "2"), ("7-", "7")])
def test_layers_that_the_base_does_not_have_are_named(
    program: Program, tmp_path: Path, llama_base: Path, asked: str, absent: str
) -> None:
    workspace = CoordinatorWorkspace(tmp_path / "pool")
    begin = ["init", "--single", "--name", "p", "--base", str(llama_base), "--layers"]
    assert program(workspace, *begin, asked) == Code.SETTINGS_INVALID.fate.exit
    refused(program, Code.SETTINGS_INVALID)
    assert f"--layers is wrong: the base has no layer {absent}, it has layers 0 to 1." in program.err
    assert not workspace.folder.exists()
    assert program(workspace, *begin, "1") == 0
