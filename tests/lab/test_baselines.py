import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from protocol.bundle import ADAPTER_WEIGHTS, GATES, open_bundle
from protocol.spec import Recipe
from tests.lab import run, trial
from tests.lab.__main__ import publish
from tests.lab.conftest import Toy
from tests.lab.contenders import Contender, among, contenders
from tests.lab.experts import RECIPE
from tests.lab.test_table import Here
from tests.lab.trial import Trial

NAMES = ["joint", "multitask", "multitask r x 4"]
ROWS = 40


@pytest.mark.parametrize("toy", ["encoder-decoder"], indirect=True)
def test_baselines_have_the_experts_budget_and_rows_of_the_table(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "make_base", lambda *_: toy.base)
    monkeypatch.setattr(trial, "EXAMPLES", ROWS)
    recipe = Recipe.model_validate(RECIPE.model_dump() | {"expert_steps": 4, "gate_steps": 2, "eval_every": 4})
    one = Trial("toy", 0, 0, "encoder-decoder", tmp_path, recipe, test_rows=2)
    scope = run.Scope([*NAMES, "phatgoose", "oracle"], [2], [1], tmp_path / "maps")
    (outcome,) = run.run_all([one], run.Workshop(Here(), str), scope)
    assert set(NAMES) < set(outcome.scores.exact)
    assert set(NAMES) & set(outcome.by_pool[2].exact) == {"joint"}
    assert set(outcome.by_steps[1].exact) == {"phatgoose"}
    assert set(outcome.traced) == {"phatgoose"}
    assert (tmp_path / "maps" / one.name / "phatgoose.png").is_file()
    publish([outcome], tmp_path, tmp_path / "plots")
    assert {"families.png", "k.png", "gate-steps.png", "oracle.png"} == {
        path.name for path in (tmp_path / "plots").glob("*/*")
    }

    pool = one.pool_folder(toy.base)
    apart, together, regated = (
        [open_bundle(folder) for folder in pool.glob(f"{glob}/bundles/*")] for glob in ("*", "joint/*", "gates-1/*")
    )
    experts = {bundle.spec.name: bundle for bundle in apart}
    assert {bundle.spec.name for bundle in together} == set(one.world.experts)
    for bundle in together:
        assert bundle.spec.joint
        alike = experts[bundle.spec.name]
        assert bundle.spec.modules == alike.spec.modules
        gates = [load_file(each.folder / GATES) for each in (bundle, alike)]
        assert any((gates[0][name] != gates[1][name]).any() for name in gates[0])
    for bundle in regated:
        files = bundle.manifest.files, experts[bundle.spec.name].manifest.files
        assert files[0][ADAPTER_WEIGHTS].sha256 == files[1][ADAPTER_WEIGHTS].sha256
        assert files[0][GATES].sha256 != files[1][GATES].sha256
    assert len(regated) == len(one.world.experts)
    assert {next(iter(experts[name].spec.modules.values())).rank for name in ("multitask", one.world.experts[0])} == {4}
    assert next(iter(experts["multitask-wide"].spec.modules.values())).rank == 16
    for name in ("multitask", "multitask-wide"):
        (found,) = (json.loads(path.read_text()) for path in (pool / name / "runs").glob("*/run.json"))
        assert found["recipe"]["batch_size"] == recipe.batch_size * len(one.world.experts)
        assert found["steps"]["expert"] == recipe.expert_steps
        private = (pool / name / "private.jsonl").read_text().splitlines()
        each = [(pool / expert / "private.jsonl").read_text().splitlines() for expert in one.world.experts]
        assert private == [line for lines in each for line in lines]


def test_a_trial_that_was_begun_goes_to_another_process(tmp_path: Path) -> None:
    one = Trial("toy", 0, 0, "encoder-decoder", tmp_path)
    assert one.world.experts
    with run.workshop(1, str) as shop:
        assert shop.give(Trial.rows, one, one.world.tasks()[:1]).result() == one.rows(one.world.tasks()[:1])


def test_a_part_of_the_pool_is_not_compared_with_an_expert_for_all() -> None:
    rows: list[Contender] = contenders(["anna", "berta"], 32, [*NAMES, "oracle"])
    assert {row.name for row in among(rows, ["anna"])} == {"joint", "expert:anna"}
