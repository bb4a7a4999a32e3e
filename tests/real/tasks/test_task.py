"""Parts, merged rows, balance, refusals; and the rule that divides what nobody trains on."""

import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.errors import Code, Refused
from tests.house.sources import ROOT
from tests.real import packages, tasks
from tests.real.tasks import bigbench, documents, halves
from tests.real.tasks.task import SHARES, SKEW, Row, Task, balanced, majority, merged

WORDS = [f"word{at}" for at in range(400)]


def made(family: str = "skill", name: str = "made", **changes: object) -> Task:
    task = Task(name, "skill", "words", (), "exact", lambda: [Row(word, (word.upper(),)) for word in WORDS])
    return replace(task, family=family, **changes)  # type: ignore[arg-type]


def test_no_part_shares_an_input_with_another_one() -> None:
    parts = {part: {row.input for row in tasks.rows(made(), part, seed=0)} for part in SHARES}
    assert set.union(*parts.values()) == set(WORDS)
    assert sum(map(len, parts.values())) == len(WORDS)
    assert 240 < len(parts["train"]) < 320
    assert min(map(len, parts.values())) > 20


def test_a_row_lies_where_its_group_lies_whatever_its_task_and_seed() -> None:
    first = {row.targets for row in tasks.rows(made(), "train", seed=0)}
    asked = made(name="other", wordings=("Say {}", "Speak: {}"))
    again = tasks.rows(asked, "train", seed=7)
    assert {row.targets for row in again} == first
    assert {row.input.split("word")[0] for row in again} == {"Say ", "Speak: "}
    assert Row("anything", ("x",), groups=("WORD1",)).part == Row("word1", ("y",)).part


def test_a_draw_is_the_same_again_and_another_with_another_seed() -> None:
    drawn = [tasks.rows(made(), "train", seed, 20) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(rows) for rows in drawn] == [20, 20, 20]


def test_a_row_of_several_groups_is_unseen_if_nobody_trains_on_any() -> None:
    trained, held = (
        next(word for word in WORDS if (Row(word, ("x",)).part == "train") is seen) for seen in (True, False)
    )
    assert Row("both", ("x",), groups=(held, held)).unseen
    assert not Row("both", ("x",), groups=(held, trained)).unseen


def test_what_nobody_trains_on_is_on_its_own_side_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "split", lambda: {"made": "tuning", "made/paraphrase": "tuning"})
    for family in ("composition", "bbh", "paraphrase"):
        with pytest.raises(ValueError, match="made is for tuning, not for train"):
            tasks.rows(made(family), "train", seed=0)
    assert len(tasks.rows(made("bbh"), "tuning", seed=0)) == len(WORDS)
    unseen = tasks.rows(made("composition"), "tuning", seed=0)
    assert all(row.part != "train" for row in unseen)
    own = made(wordings=("heard {}",), paraphrases=("unheard {}",))
    asked = tasks.rows(tasks.paraphrase(own), "tuning", seed=0)
    assert {row.input for row in asked} == {f"unheard {word}" for word in WORDS if Row(word, ("x",)).part == "tuning"}


def test_rows_that_ask_the_same_are_one() -> None:
    rows = merged("t", "exact", [Row("A  b", ("x",)), Row("a b", ("y", "x")), Row("c", ("z",))])
    assert rows == [Row("A  b", ("x", "y")), Row("c", ("z",))]
    doubted = [Row("a", ("x",), ("x", "y")), Row("A", ("y",), ("x", "y")), Row("a", ("x",), ("x", "y"))]
    assert merged("t", "choices", doubted) == []
    assert merged("t", "bits", [Row("", ("text",)), Row("", ("Text",)), Row("", ("other",))])[1:] == [
        Row("", ("other",))
    ]


@pytest.mark.parametrize(
    ("metric", "row"),
    [
        ("exact", Row("a", ())),
        ("exact", Row("a", ("",))),
        ("choices", Row("a", ("x",))),
        ("choices", Row("a", ("x",), ("y", "z"))),
        ("choices", Row("a", ("x",), ("x",))),
        ("choices", Row("a", ("x",), ("x", "y", "x"))),
        ("exact", Row("a", ("x",), ("x", "y"))),
    ],
)
def test_a_row_without_what_its_metric_needs_is_refused(metric: str, row: Row) -> None:
    with pytest.raises(Refused, match="A row of t ") as refusal:
        merged("t", metric, [row])  # type: ignore[arg-type]
    assert refusal.value.code is Code.TASK_ROW


def test_skewed_answers_are_balanced_and_rare_ones_left_out() -> None:
    rows = [
        Row(f"{answer}{at}", (answer,)) for answer, count in (("a", 90), ("b", 20), ("c", 3)) for at in range(count)
    ]
    kept = balanced(rows, least=10)
    assert Counter(row.targets[0] for row in kept) == {"a": 20 * SKEW, "b": 20}
    assert {row.choices for row in kept} == {("a", "b")}
    assert majority(kept) == pytest.approx(SKEW / (SKEW + 1))
    assert balanced([]) == []


def test_the_split_is_what_its_rule_makes() -> None:
    assert tasks.SPLIT.read_text() == halves.text(tasks.every().values())
    tuning, confirming = halves.halves(tasks.every().values())
    assert set(tasks.split()) == {name for half in (tuning, confirming) for names in half.values() for name in names}
    for family in ("bbh", "bbl", "novel", "composition", "paraphrase"):
        assert sorted(tuning[family] + confirming[family])[::2] == tuning[family]
    assert len(tasks.every()) == sum(len(module.tasks()) for module in tasks.MODULES) + len(
        [task for task in tasks.every().values() if task.family == "paraphrase"]
    )


def test_every_held_out_cell_has_its_row_and_its_column_covered() -> None:
    cells = {(task.field, task.name.split("/")[1]): task for task in documents.tasks()}
    held = {cell for cell, task in cells.items() if not tasks.contributed(task)}
    assert len(held) >= 9
    for language, register in held:
        assert sum(cell[0] == language and cell not in held for cell in cells) >= 2
        assert sum(cell[1] == register and cell not in held for cell in cells) >= 4
    assert {tasks.split()[f"{language}/{register}"] for language, register in held} == {"tuning", "confirming"}


@pytest.mark.parametrize(("recipe", "names", "programs"), [("bbh", bigbench.BBH, 3), ("bbl", bigbench.BBL, 0)])
def test_the_suites_are_the_papers(recipe: str, names: tuple[str, ...], programs: int) -> None:
    said = tomllib.loads((ROOT / "docs" / "recipes" / f"{recipe}.toml").read_text())["tasks"]
    written = [task["configs"][0] for task in said if task.get("dataset") != "lukaemon/bbh"]
    assert sorted(written) == sorted(names)
    assert len(said) == len(names) + programs


def test_enough_tasks_are_contributors_and_no_suite_is() -> None:
    contributed = [task for task in tasks.every().values() if tasks.contributed(task)]
    assert {task.family for task in contributed} == {"skill", "cell"}
    skills = [task for task in contributed if task.family == "skill"]
    assert len(skills) >= 45
    assert len({task.field for task in skills}) >= 15
    assert 3 * sum(bool(task.paraphrases) for task in skills) >= len(skills)


def test_no_wording_is_heard_and_a_paraphrase_and_each_has_a_place_for_its_row() -> None:
    for task in tasks.every().values():
        assert not {*task.wordings} & {*task.paraphrases}
        assert all(wording.count("{}") == 1 for wording in (*task.wordings, *task.paraphrases))


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bigbench, "files_of", lambda name: packages.files_of(name, tmp_path))
    with pytest.raises(Refused, match=r"The package bigbench 1\.0\.0 is not here\.") as refusal:
        tasks.rows(tasks.every()["snarks"], "tuning", seed=0)
    assert refusal.value.code is Code.DATA_UNREADABLE
    assert "make real" in refusal.value.hint
