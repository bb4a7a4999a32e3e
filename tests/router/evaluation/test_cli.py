"""greylag-router evaluate, in this process."""

import json
from pathlib import Path

import pytest

from protocol.errors import Code, Refused
from tests import factories
from tests.house.sources import ROOT
from tests.router.evaluation.conftest import RANKED, WRITTEN
from tests.router.verbs import call, pulled_node


@pytest.fixture(scope="module")
def node(t5_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a release of two experts, and tasks beside it."""
    folder = pulled_node(t5_base, tmp_path_factory.mktemp("town")).parent
    (folder / "mine.jsonl").write_text("\n".join(RANKED + WRITTEN))
    return folder


def options(node: Path, *more: object) -> tuple[object, ...]:
    place = ("-w", node / "node", "--device", "cpu", "--tasks", node / "mine.jsonl")
    return ("evaluate", *place, "--max-new-tokens", 3, *more)


def test_a_release_is_scored_on_tasks_of_ones_own(node: Path, tmp_path: Path) -> None:
    again = options(node, "--output", tmp_path / "scores", "--methods", "base,oracle,retrieval")
    said = call(*again, "--json")
    document = json.loads(said.stdout)
    assert document["tasks"]["kind"] == {"rows": 3, "metric": "accuracy", "cut": 0}
    assert document["tasks"]["free"]["metric"] == "exact"
    assert set(document["methods"]) == {"base", "oracle"}
    assert "centroid" in document["skipped"]["retrieval"]
    assert document["methods"]["oracle"]["tasks"]["kind"]["expert"] in ("ada/reverse", "ada/copy")
    means = [
        document["methods"]["base"]["tasks"][task][name] for task, name in (("kind", "accuracy"), ("free", "exact"))
    ]
    assert document["methods"]["base"]["mean"] == pytest.approx(sum(means) / 2)
    assert "expert:ada/copy: kind, 3 rows" in said.stderr
    table = call(*again).stdout
    assert f"{100 * document['methods']['oracle']['mean']:.1f}" in table
    assert "retrieval was skipped: " in " ".join(table.split())


def test_base_and_the_releases_own_method_run_by_default(node: Path) -> None:
    said = call(*options(node, "--limit", 1))
    assert "phatgoose" in said.stdout
    assert "kind (1)" in said.stdout


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--methods", "fatgoose"], Code.METHOD_UNKNOWN),
        (["--k", 0], Code.REQUEST_INVALID),
        (["--release", 7], Code.RELEASE_UNKNOWN),
        (["--deny", "ada/"], Code.EXPERTS_EXHAUSTED),
    ],
)
def test_what_cannot_be_run_is_refused(node: Path, more: list[object], code: Code) -> None:
    with pytest.raises(Refused) as refused:
        call(*options(node, *more))
    assert refused.value.code is code


@pytest.mark.parametrize("shown", [(), ("--json",)])
def test_methods_that_are_all_skipped_leave_no_table(node: Path, shown: tuple[str, ...]) -> None:
    with pytest.raises(Refused, match="None of the methods can run") as refused:
        call(*options(node, "--methods", "retrieval,average-activation", *shown))
    assert refused.value.code is Code.STATISTICS_MISSING
    assert "centroid" in refused.value.message


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", Code.DATA_EMPTY),
        (b'{"input": "a"}', Code.TASK_ROW),
        (b'{"input": "a", "target": "b", "choices": ["c", "d"]}', Code.TASK_ROW),
        (b"\xff", Code.REQUEST_INVALID),
    ],
)
def test_bad_tasks_are_refused_before_a_model_is_looked_for(tmp_path: Path, content: bytes, code: Code) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(Refused) as refused:
        call("evaluate", "-w", tmp_path, "--tasks", tmp_path / "bad.jsonl")
    assert refused.value.code is code


def test_a_benchmark_runs_by_its_recipe(node: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "lukaemon" / "bbh"
    rows = [{"input": "say it", "target": "Yes"}, {"input": "please now", "target": "No"}]
    (folder / "web_of_lies").mkdir(parents=True)
    (folder / "web_of_lies" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = (ROOT / "docs" / "recipes" / "bbh.toml").read_text()
    tasks = text.split("\n[[tasks]]\n")
    (mine,) = (each for each in tasks if each.startswith('name = "Web of Lies"'))
    (tmp_path / "web.toml").write_text("\n[[tasks]]\n".join([tasks[0], mine]))
    said = call(
        "evaluate", "-w", node / "node", "--device", "cpu", "--recipe", tmp_path / "web.toml", "--data",
        tmp_path / "data", "--methods", "base", "--json",
    )  # fmt: skip
    assert json.loads(said.stdout)["tasks"]["Web of Lies"] == {"rows": 2, "metric": "accuracy", "cut": 0}


@pytest.mark.parametrize(
    "more", [[], ["--recipe", "r.toml", "--tasks", "t.jsonl"], ["--tasks", "t.jsonl", "--data", "."]]
)
def test_rows_have_one_source(tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        call("evaluate", "-w", tmp_path, *more)
    assert refused.value.code is Code.REQUEST_INVALID


def test_a_release_of_another_base_is_refused(node: Path, tmp_path: Path) -> None:
    other = factories.make_t5(tmp_path / "other", seed=1)
    with pytest.raises(Refused) as refused:
        call(*options(node, "--base", other))
    assert refused.value.code is Code.BASE_MISMATCH
