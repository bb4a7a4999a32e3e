from pathlib import Path

import numpy as np
import pytest

from tests.lab import plots, routes
from tests.lab.conftest import EXPERTS, Toy
from tests.lab.evaluate import Scores
from tests.lab.trial import assemble
from tests.lab.world import FAMILIES, World

CELLS = {column: [10.0, 1.0] for column in ("all", *FAMILIES, "held_in")}
SUMMARY = {
    name: {column: [value + at, 1.0] for column, (value, _) in CELLS.items()}
    for at, name in enumerate(("base", "phatgoose", "phatgoose k=1", "phatgoose k=3", "arrow k=4"))
}


def test_lines_follow_what_every_table_has() -> None:
    assert plots.over({12: SUMMARY, 6: {"base": SUMMARY["phatgoose"]}}) == {"base": {6: [11.0, 1.0], 12: [10.0, 1.0]}}
    assert plots.over_k(SUMMARY, 2) == {
        "phatgoose": {1: [12.0, 1.0], 2: [11.0, 1.0], 3: [13.0, 1.0]},
        "arrow": {4: [14.0, 1.0]},
    }


def test_all_there_is_becomes_pictures(tmp_path: Path) -> None:
    traced = {"phatgoose": routes.Traced([(0.5, 80.0), (2.0, 10.0)], -0.3), "arrow": routes.Traced([(1.0, 0.0)], None)}
    nothing = plots.Drawn("it", {"base": CELLS}, {}, {100: SUMMARY}, {})
    plots.draw(nothing, tmp_path / "few")
    assert {path.name for path in (tmp_path / "few").iterdir()} == {"families.png"}
    steps = {100: SUMMARY, 1: SUMMARY}
    plots.draw(plots.Drawn("it", SUMMARY, {6: SUMMARY, 12: SUMMARY}, steps, traced), tmp_path / "all")
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    assert set(drawn) == {"families.png", "k.png", "pools.png", "gate-steps.png", "oracle.png"}
    assert all(data.startswith(b"\x89PNG") for data in drawn.values())
    table = routes.markdown(traced)
    assert "| phatgoose | 1.25 | -0.30 |" in table
    assert "| arrow | 1.00 | none |" in table


def test_a_method_that_is_the_oracle_is_no_nats_from_it(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, world = assemble(toy.base, toy.bundles), World(0, "toy")
    tasks = [next(task for task in world.tasks() if task.family == family) for family in FAMILIES]
    rows = {task.name: world.rows(task, 0, 3) for task in tasks}
    singles = {
        f"expert:{name}": {task.name: float(name == EXPERTS[at % 2]) for at, task in enumerate(tasks)}
        for name in EXPERTS
    }
    right_once = {task.name: float(at == 0) for at, task in enumerate(tasks)}
    scores = Scores(singles | {"phatgoose": right_once})
    assert routes.trace(model, rows, tasks, Scores({"phatgoose": right_once}), tmp_path / "none") == {}
    oracles = routes.best_experts(scores, tasks)
    assert [oracles[task.name] for task in tasks[:2]] == ["anna", "berta"]
    monkeypatch.setattr(routes, "METHODS", ("phatgoose", "expert:anna"))
    found = routes.trace(model, rows, tasks, scores, tmp_path)
    assert (tmp_path / "phatgoose.png").is_file()
    assert all(distance > 0 for distance, _ in found["phatgoose"].points)
    assert [score for _, score in found["phatgoose"].points] == [100.0, 0.0, 0.0, 0.0]
    assert found["expert:anna"].points[0] == (0.0, 100.0)
    assert np.isinf(found["expert:anna"].points[1][0])
