"""Many methods over many tasks: oracles, skips, what is remembered, and how it is shown."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from protocol.errors import Code, Refused
from router.evaluation import report
from router.evaluation.compare import Comparing, Comparison
from router.evaluation.contenders import read_methods
from router.evaluation.prompts import BatchLimits
from router.evaluation.results import ANSWERS, RESULTS, Results
from router.evaluation.rows import Task
from router.evaluation.scoring import Judged, Score
from router.methods.features.background import PublicText
from router.model.routed_model import RoutedModel
from router.pool.calibration import Calibration
from router.query.request import DEFAULT, RoutingChoice

LIMITS = BatchLimits(batch=4, new_tokens=3)
EXPERTS = ["expert:ada/e0", "expert:ada/e1", "expert:ada/e2"]


def comparing(model: RoutedModel, choice: RoutingChoice = DEFAULT) -> Comparing:
    return Comparing(model, choice, LIMITS, "f1", lambda _: None)


def test_oracle_and_best_individual_are_chosen_by_evaluation(
    model: RoutedModel, ranked: Task, written: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {  # by expert, on the ranked and on the written task
        "expert:ada/e0": (1.0, 0.0), "expert:ada/e1": (0.0, 0.9), "expert:ada/e2": (0.8, 0.7),
    }  # fmt: skip

    def judge(_model: object, task: Task, _prompts: object, choice: RoutingChoice, *_: object) -> list[Judged]:
        figure = figures[str(choice.method)][task is written]
        return [
            Judged(row.number, "", {"f1": figure} if task is written else {"accuracy": figure}) for row in task.rows
        ]

    monkeypatch.setattr("router.evaluation.compare.judge", judge)
    found = comparing(model).run([ranked, written], ["oracle", "best-individual", "expert:ada/e0"])
    assert list(found.scores) == ["oracle", "best-individual", "expert:ada/e0"]
    assert {task: score.expert for task, score in found.scores["oracle"].items()} == {
        "kind": "ada/e0",
        "free": "ada/e1",
    }
    assert [score.expert for score in found.scores["best-individual"].values()] == ["ada/e2"] * 2
    assert [found.mean(method) for method in found.scores] == pytest.approx([0.95, 0.75, 0.5])
    remarks = shown(found)
    assert "oracle took ada/e0 for kind, ada/e1 for free." in remarks
    assert "best-individual took ada/e2." in remarks
    document = report.as_json(found)
    assert document["methods"]["oracle"]["tasks"]["free"] == {"f1": pytest.approx(0.9), "ties": 0, "expert": "ada/e1"}


def test_every_expert_runs_alone_but_once(model: RoutedModel, ranked: Task) -> None:
    ran = list[str]()
    comparison = replace(comparing(model, RoutingChoice(deny=("e1",))), say=ran.append)
    found = comparison.run([ranked], ["base", "oracle"])
    assert ran == [f"{method}: kind, 3 rows" for method in (EXPERTS[0], EXPERTS[2], "base")]
    best = max(comparison.run([ranked], [method]).mean(method) for method in (EXPERTS[0], EXPERTS[2]))
    assert found.mean("oracle") == best


def test_a_method_that_lacks_statistics_is_skipped_and_said(model: RoutedModel, ranked: Task) -> None:
    ran = list[str]()
    found = replace(comparing(model), say=ran.append).run([ranked], ["average-activation", "retrieval", "base"])
    assert list(found.scores) == ["base"]
    assert ran == ["base: kind, 3 rows"]
    assert "average-activation needs the means" in found.skipped["average-activation"]
    assert "centroid" in found.skipped["retrieval"]
    assert "average-activation was skipped: " in shown(found)
    assert report.as_json(found)["skipped"] == found.skipped


def test_an_expert_that_is_not_there_is_refused_before_anything_runs(model: RoutedModel, ranked: Task) -> None:
    ran = list[str]()
    with pytest.raises(Refused) as refused:
        replace(comparing(model), say=ran.append).run([ranked], ["base", "expert:nobody"])
    assert refused.value.code is Code.EXPERT_UNKNOWN
    assert ran == []


def test_a_rerun_goes_on_where_it_ended(model: RoutedModel, ranked: Task, written: Task, tmp_path: Path) -> None:
    def run(
        methods: list[str], choice: RoutingChoice = DEFAULT, limits: BatchLimits = LIMITS
    ) -> tuple[Comparison, int]:
        counting = _Counting(model)
        results = Results(tmp_path, counting, limits)  # type: ignore[arg-type]
        comparison = Comparing(counting, choice, limits, "f1", lambda _: None, results)  # type: ignore[arg-type]
        return comparison.run([ranked, written], methods), counting.calls

    first, calls = run(["base", "phatgoose"])
    assert calls > 0
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"task": "cut o')  # as a crash leaves it
    again, calls = run(["base", "phatgoose"], limits=LIMITS._replace(batch=1))
    assert (again.scores, calls) == (first.scores, 0)
    more, calls = run(["base", "phatgoose", "merged"])
    assert calls > 0
    assert {method: more.scores[method] for method in first.scores} == first.scores
    assert run(["phatgoose"], RoutingChoice(k=2))[1] == 0  # as the release says
    for choice, limits in ((RoutingChoice(k=1), LIMITS), (DEFAULT, LIMITS._replace(new_tokens=2))):
        assert run(["phatgoose"], choice, limits)[1] > 0
    lines = [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 10
    answers = [json.loads(line) for line in (tmp_path / ANSWERS / lines[0]["answers"]).read_text().splitlines()]
    assert [each["row"] for each in answers] == [1, 2, 3]
    assert sum(each["accuracy"] for each in answers) / 3 == lines[0]["metrics"]["accuracy"]


def test_a_score_is_stale_once_anything_that_routes_has_changed(
    model: RoutedModel, ranked: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calls() -> int:
        counting = _Counting(model)
        results = Results(tmp_path, counting, LIMITS)  # type: ignore[arg-type]
        Comparing(counting, DEFAULT, LIMITS, "f1", lambda _: None, results).run([ranked], ["phatgoose"])  # type: ignore[arg-type]
        return counting.calls

    generation, pool = model.generation, model.generation.pool
    assert calls() > 0
    assert calls() == 0
    zeros = Calibration.zeros([expert.digest for expert in pool.experts], sorted(pool.modules))
    changed = [
        (model, "generation", replace(generation, pool=pool.calibrated(zeros.at(zeros.vector + 1)))),
        (model, "generation", replace(generation, pool=pool.calibrated(zeros))),
        (model, "generation", generation),
        (model.features.mixtures, "public", PublicText(model.features.mixtures.reader, ["some", "words"])),
        (model.features.mixtures, "public", PublicText(model.features.mixtures.reader, ["other", "words"])),
    ]
    ran = []
    for place, name, value in changed:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            ran.append(calls() > 0)
    assert ran == [True, True, False, True, True]


class _Counting:
    """A model that counts how often it is asked."""

    def __init__(self, model: RoutedModel) -> None:
        self._model, self.calls = model, 0

    def __getattr__(self, name: str) -> object:
        self.calls += name in ("likelihoods", "generate")
        return getattr(self._model, name)


def shown(found: Comparison) -> str:
    """The table's words, wherever its lines break."""
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(report.as_table(found))
    return " ".join(capture.get().replace("│", " ").replace("┃", " ").split())


def test_tables_hold_the_same_figures(ranked: Task, written: Task) -> None:
    scores = {
        "base": {"kind": Score({"accuracy": 0.25}), "free": Score({"exact": 0.0, "f1": 0.5})},
        "x|[red]y": {"kind": Score({"accuracy": 1.0}, ties=2), "free": Score({"exact": 0.0, "f1": 0.125})},
    }
    found = Comparison((ranked, written), "f1", scores, cut={"kind": 3})
    for line in (
        "percent of accuracy or f1 base x|[red]y",
        "kind (3) 25.0 100.0",
        "free (2) 50.0 12.5",
        "mean 37.5 56.2",
        "x|[red]y: in 2 rows the first of equally likely choices was taken.",
        "kind: 3 inputs were cut.",
    ):
        assert line in shown(found)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["base,phatgoose"], ["base", "phatgoose"]),
        (["base", "oracle, merged"], ["base", "oracle", "merged"]),
        (["genknowsub:a,b/c,base"], ["genknowsub:a,b/c", "base"]),
        (["genknowsub:a", "expert:b"], ["genknowsub:a", "expert:b"]),
    ],
)
def test_methods_are_read(given: list[str], read: list[str]) -> None:
    assert read_methods(given) == read


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["base,bse"], Code.METHOD_UNKNOWN),
        (["expert"], Code.METHOD_UNKNOWN),
        (["expert:a,b"], Code.METHOD_UNKNOWN),
        ([""], Code.METHOD_UNKNOWN),
        (["base,base"], Code.REQUEST_INVALID),
    ],
)
def test_what_is_no_method_is_refused(given: list[str], code: Code) -> None:
    with pytest.raises(Refused) as refused:
        read_methods(given)
    assert refused.value.code is code
