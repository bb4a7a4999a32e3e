"""Recipes: every one is read, and cooked from data of the shape that it names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from protocol.errors import Code, Refused
from router.evaluation.recipes import cook, read_recipe
from tests.house.sources import ROOT

RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.toml"))
COUNTS = {"bbh": 22, "bbl": 17, "t0-held-out": 11}
P3 = {"inputs_pretokenized": "Is it? \n", "targets_pretokenized": "Yes\n", "answer_choices": ["Yes", "No "]}
BIGBENCH = {
    "inputs": "Which?", "targets": ["b"], "multiple_choice_targets": ["a", "b", "b "],
    "multiple_choice_scores": [0, 1, 1], "idx": 0,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "bigscience/P3": P3,
    "tasksource/bigbench": BIGBENCH,
    "lukaemon/bbh": {"input": "not True is", "target": "True"},
}


def fake(path: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
    """One row of the shape that the Hub's data set has, which names where it was asked for."""
    row = SHAPES[path].copy()
    if config == "web_of_lies":
        row["target"] = "Yes"
    first = next(iter(row))
    return [row | {first: f"{config} {split}: {row[first]}"}]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_cooked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", fake)
    recipe = read_recipe(path)
    assert recipe.max_input_tokens == 512
    assert len({task.name for task in recipe.tasks}) == COUNTS[path.stem]
    for task, cooked in zip(recipe.tasks, cook(recipe), strict=True):
        assert len(cooked.rows) == len(task.configs) * len(task.splits)
        assert cooked.ranked == (task.metric is None) == (task.new_tokens is None)
        for row in cooked.rows:
            assert row.targets
            if task.dataset != "bigscience/P3":
                assert row.input.endswith("\nAnswer:")


def test_what_t0_was_held_out_on_is_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe(ROOT / "docs" / "recipes" / "t0-held-out.toml")
    found = {task.name: len(task.configs) for task in recipe.tasks}
    # As many templates as the paper's code counts.
    assert found == {
        "RTE": 10, "HellaSwag": 4, "COPA": 8, "WiC": 10, "Winogrande": 5, "CB": 15, "StoryCloze": 5, "ANLI-R1": 15,
        "ANLI-R2": 15, "ANLI-R3": 15, "WSC": 10,
    }  # fmt: skip
    monkeypatch.setattr(datasets, "load_dataset", fake)
    (first, *_), *_ = (task.rows for task in cook(recipe))
    assert (first.targets, first.choices) == (("Yes",), ("Yes", "No"))
    assert first.input == "super_glue_rte_GPT_3_style validation: Is it? \n"


def known(folder: Path) -> Iterator[str]:
    for path in folder.glob("*.yaml"):
        yield path.stem


def test_data_sets_of_big_bench_are_called_so() -> None:
    """The harness has the same collections under the same names, though from other places."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    tasks = Path(lm_eval.__file__).parent / "tasks"
    big = {*known(tasks / "bigbench" / "multiple_choice"), *known(tasks / "bigbench" / "generate_until")}
    hard = set(known(tasks / "bbh" / "zeroshot"))
    for path in RECIPES:
        for task in read_recipe(path).tasks:
            names = {"tasksource/bigbench": big, "lukaemon/bbh": hard}.get(task.dataset)
            assert names is None or set(task.configs) <= names, task.name


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(
        'title = "t"\nsource = "s"\nnotes = []\nmax_input_tokens = 9\n[defaults]\ndataset = "some/set"\n'
        'splits = ["train", "validation"]\ninput = "q"\ntemplate = "Q: {input} A:"\n'
        '[[tasks]]\nname = "one"\nconfigs = ["c"]\ntargets = "t"\nmetric = "rouge-l"\nnew_tokens = 3\n'
    )
    return path


def lay(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    (folder / "some" / "set" / "c").mkdir(parents=True)
    for split, rows in splits.items():
        (folder / "some" / "set" / "c" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_an_error_without_a_text_is_told_by_its_name(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: str, **__: str) -> None:
        raise RuntimeError

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(Refused, match=r"cannot be loaded: RuntimeError\.") as refused:
        cook(read_recipe(small))
    assert refused.value.code is Code.DATA_UNREADABLE


def test_data_sets_are_read_from_a_folder(small: Path, tmp_path: Path) -> None:
    data = lay(tmp_path / "data", train=[{"q": "a", "t": ["b", "c"]}], validation=[{"q": "d", "t": ["e"]}] * 2)
    (task,) = cook(read_recipe(small), data=data)
    assert [(row.input, row.targets) for row in task.rows] == [("Q: a A:", ("b", "c")), *[("Q: d A:", ("e",))] * 2]
    assert (task.name, task.metric, task.new_tokens) == ("one", "rouge-l", 3)
    assert len(cook(read_recipe(small), data=data, limit=2)[0].rows) == 2


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ({"train": [{"q": "a", "t": ["b"]}]}, Code.DATA_UNREADABLE),  # no validation rows
        ({"train": [{"q": "a"}], "validation": [{"q": "a"}]}, Code.DATA_COLUMNS),
        ({"train": [{"q": "a", "t": [" "]}], "validation": [{"q": "a", "t": ["b"]}]}, Code.TASK_ROW),
    ],
)
def test_other_data_are_refused(small: Path, tmp_path: Path, rows: dict[str, Any], code: Code) -> None:
    with pytest.raises(Refused) as refused:
        cook(read_recipe(small), data=lay(tmp_path / "data", **rows))
    assert refused.value.code is code


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "one"', "", "name"),
        ('targets = "t"', "", "one of target"),
        ('targets = "t"', 'targets = "t"\ntarget = "t"', "one of target"),
        ('targets = "t"', 'scores = "t"', "no choices"),
        ("{input} ", "", "template"),
        ("new_tokens = 3", "new_tokens = 0", "new_tokens"),
        ('metric = "rouge-l"', 'metric = "bleu"', "metric"),
        ("notes = []", "", "notes"),
        ("[defaults]", "[defaults", "no recipe"),
        ("new_tokens = 3", "new_tokens = 3\nshots = 2", "shots"),
    ],
)
def test_what_is_no_recipe_is_refused(small: Path, old: str, new: str, said: str) -> None:
    assert old in small.read_text()
    small.write_text(small.read_text().replace(old, new))
    with pytest.raises(Refused, match=said) as refused:
        read_recipe(small)
    assert refused.value.code is Code.SETTINGS_INVALID
