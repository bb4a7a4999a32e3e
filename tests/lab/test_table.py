import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import Code, Refused
from protocol.spec import Recipe
from router.base.batching import TokenPair, encode_pairs, pair_batch
from router.methods import METHODS
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests.lab import __main__ as bench
from tests.lab import exact, run, table, trial
from tests.lab.base import END
from tests.lab.conftest import EXPERTS, WIDTH, Toy
from tests.lab.contenders import Contender, among, contenders
from tests.lab.evaluate import Scores, evaluate
from tests.lab.experts import RECIPE
from tests.lab.trial import Trial, assemble
from tests.lab.world import Row, Task, World
from tests.lab.written_means import with_means, written_means

MAX_NEW_TOKENS = 12
TASKS = [Task(name, "compose", ()) for name in ("one", "two")] + [Task("own", "held_in", ())]


def _written(model: RoutedModel, inputs: Sequence[str], choice: RoutingChoice) -> list[str]:
    """Let the model write token by token; an answer that does not end, or has special tokens in it, says so."""
    answered = model.answer(inputs, choice, max_new_tokens=MAX_NEW_TOKENS, explain=True)
    return [" ".join(answer.output_tokens) for answer in answered.answers]


def _questions(model: RoutedModel) -> dict[str, list[Row]]:
    """Ask for what several methods answer, so that every method is right now and then and none always."""
    world = World(0, "toy")
    inputs = [row["input"] for task in world.tasks() for row in world.rows(task, 0, 1)]
    rows: dict[str, list[Row]] = {task.name: [] for task in TASKS}
    answering = ("phatgoose", "average-activation", "merged", "retrieval", "arrow", "expert:anna")
    for at, method in enumerate(answering):
        answers = (text.split() for text in _written(model, inputs, RoutingChoice(method)))
        rows[TASKS[at // 2].name] += [
            {"input": asked, "target": " ".join(answer[:-1])}
            for asked, answer in zip(inputs, answers, strict=True)
            if answer[1:] and answer[-1] == END and not any(word.startswith("<") for word in answer[:-1])
        ]
    assert all(len(each) > 3 for each in rows.values())
    return rows


@pytest.fixture(scope="module")
def model(toy: Toy) -> RoutedModel:
    return assemble(toy.base, toy.bundles)


@pytest.fixture(scope="module")
def rows(model: RoutedModel) -> dict[str, list[Row]]:
    return _questions(model)


@pytest.fixture(scope="module")
def found(model: RoutedModel, rows: dict[str, list[Row]]) -> Scores:
    return evaluate(model, rows, _shipped())


def _shipped(experts: Sequence[str] = EXPERTS) -> list[Contender]:
    return [each for each in contenders(experts, WIDTH) if each.bundles == "experts"]


def test_one_pass_over_input_and_target_says_what_greedy_decoding_gives(
    model: RoutedModel, rows: dict[str, list[Row]]
) -> None:
    every = [row for each in rows.values() for row in each]
    seen = set()
    for contender in (each for each in _shipped() if each.choice.k in {None, 3}):
        written = _written(model, [row["input"] for row in every], contender.choice)
        greedy = [answer == f"{row['target']} {END}" for answer, row in zip(written, every, strict=True)]
        assert exact.exact(model, every, contender.choice) == greedy, contender.name
        seen |= set(greedy)
    assert seen == {True, False}


def test_other_names_and_another_order_of_experts_give_the_same_table(
    toy: Toy, rows: dict[str, list[Row]], found: Scores
) -> None:
    renamed = RoutedModel.from_base(str(toy.base), device="cpu")
    names = {name: f"z-{at}" for at, name in enumerate(EXPERTS)}
    for name, bundle in reversed(list(zip(EXPERTS, toy.bundles, strict=True))):
        renamed.append(bundle, name=names[name])
    again = evaluate(renamed, rows, _shipped([*names.values()]))
    assert table.summarise([found], TASKS) == table.summarise([again], TASKS)
    for name, other in names.items():
        assert found.exact[f"expert:{name}"] == again.exact[f"expert:{other}"]
    assert len({tuple(row.values()) for row in found.exact.values()}) > 3


def test_all_methods_are_given_the_same_texts(
    model: RoutedModel, rows: dict[str, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Counter[tuple[str, tuple[int, ...], tuple[int, ...]]]] = []
    likelihoods = RoutedModel.likelihoods

    def listening(self: RoutedModel, inputs: Sequence[str], pairs: Sequence[TokenPair], choice: Any) -> Any:
        asked = [(text, tuple(pair.input), tuple(pair.target)) for text, pair in zip(inputs, pairs, strict=True)]
        given.append(Counter(asked))
        return likelihoods(self, inputs, pairs, choice)

    monkeypatch.setattr(RoutedModel, "likelihoods", listening)
    every = _shipped()
    evaluate(model, rows, every)
    assert len(given) == len(every)
    assert len({row["input"] for each in rows.values() for row in each}) > 1
    assert all(asked == given[0] for asked in given)
    texts = Counter(row["input"] for each in rows.values() for row in each)
    assert Counter(text for text, _, _ in given[0].elements()) == texts


def test_scores_do_not_depend_on_what_else_is_in_a_batch(
    model: RoutedModel, rows: dict[str, list[Row]], found: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "AT_ONCE", 40)
    assert evaluate(model, rows, _shipped()) == found


def test_a_method_whose_statistics_nobody_told_is_left_out_with_a_reason(toy: Toy, rows: dict[str, list[Row]]) -> None:
    model = assemble(toy.base, [*toy.bundles, toy.silent])
    found = evaluate(model, rows, _shipped())
    assert {"average-activation", "retrieval"} <= set(found.skipped)
    assert not set(found.skipped) & set(found.exact)
    assert "silent" in found.skipped["retrieval"]
    summary = table.summarise([found], TASKS)
    assert "retrieval" not in summary
    assert "phatgoose" in summary
    assert f"Left out: retrieval. {found.skipped['retrieval']}" in table.markdown(summary, found.skipped)


def test_any_other_refusal_is_a_fault(model: RoutedModel, rows: dict[str, list[Row]]) -> None:
    with pytest.raises(Refused) as refused:
        evaluate(model, rows, [Contender("it", RoutingChoice("expert:nobody"))])
    assert refused.value.code is Code.EXPERT_UNKNOWN


def test_written_means_are_those_of_the_last_step(toy: Toy, model: RoutedModel) -> None:
    base, asked = model.base, "please do it : a b c"
    paths = list(toy.bundles[0].spec.modules)
    means = written_means(base, [asked], paths)
    answered = model.answer([asked], RoutingChoice("base"), max_new_tokens=20, explain=False).answers[0].text
    assert set(means) == set(paths)
    seen: dict[str, Any] = {}
    path = next(each for each in reversed(paths) if "encoder" not in each and "EncDec" not in each)
    hook = base.model.get_submodule(path).register_forward_pre_hook(lambda _, given: seen.update(u=given[0]))
    tokens, labels = pair_batch(base, encode_pairs(base, [asked], [answered]))
    base.model(**tokens, labels=labels)
    hook.remove()
    # Teacher-forced on its own answer, the step that gave the end token saw the last word.
    last = -2 if base.architecture == "decoder-only" else -1
    assert means[path] == pytest.approx(seen["u"][0, last].numpy(), abs=1e-5)


def test_other_means_change_average_activation_and_nothing_else(
    toy: Toy, model: RoutedModel, rows: dict[str, list[Row]]
) -> None:
    pool = model.generation.pool
    turned = {expert.name: {path: mean.flip(0) for path, mean in expert.means.items()} for expert in pool.experts}
    choices = [RoutingChoice("average-activation"), RoutingChoice("phatgoose")]
    both = [Contender(str(at), choice, "written-means") for at, choice in enumerate(choices)]
    plain = [Contender(str(at), choice) for at, choice in enumerate(choices)]
    other = evaluate(model, rows, both, {"written-means": lambda: with_means(pool, turned)})
    same = evaluate(model, rows, plain)
    assert other.exact["1"] == same.exact["1"]
    assert other.exact["0"] != same.exact["0"]
    assert model.generation.pool is pool


def test_a_capped_pool_is_lowered_on_public_text_and_is_the_same_otherwise(model: RoutedModel) -> None:
    texts = [row["input"] for row in World(0, "toy").rows(World(0, "toy").tasks()[0], 0, 8)]
    free, tight = (trial.capped(model, texts, most) for most in (len(EXPERTS), 1.0))
    assert [expert.digest for expert in tight.experts] == list(model.digests)
    assert free.calibration is not None
    assert not free.calibration.bias.any()
    assert tight.calibration is not None
    assert tight.calibration.bias.min() < 0
    assert tight.calibration.bias.max() <= 0


def test_oracle_and_best_individual_are_chosen_by_evaluation() -> None:
    scores = Scores(
        {
            "expert:a": {"one": 0.75, "two": 0.0, "own": 0.0},
            "expert:b": {"one": 0.5, "two": 0.5, "own": 0.25},
            "phatgoose": {"one": 0.5, "two": 0.25, "own": 1.0},
        }
    )
    summary = table.summarise([scores], TASKS)
    assert summary["oracle"] == {"all": [62.5, 0.0], "compose": [62.5, 0.0], "held_in": [25.0, 0.0]}
    assert summary["best-individual"]["all"] == [50.0, 0.0]
    assert summary["phatgoose"] == {"all": [37.5, 0.0], "compose": [37.5, 0.0], "held_in": [100.0, 0.0]}
    assert not any(name.startswith("expert:") for name in summary)


def test_spread_is_over_seeds_and_a_row_that_a_seed_lacks_is_no_row() -> None:
    first, second = (Scores({"base": {"one": one, "two": one, "own": 0.0}}) for one in (0.0, 0.5))
    first.exact["lag"] = dict(first.exact["base"])
    assert table.summarise([first, second], TASKS) == {
        "base": {"all": [25.0, 35.36], "compose": [25.0, 35.36], "held_in": [0.0, 0.0]}
    }


def test_every_method_of_the_registry_has_a_row() -> None:
    rows = contenders(EXPERTS, WIDTH)
    assert {row.choice.method for row in rows if row.choice.method in METHODS} == {
        name for name in METHODS if ":" not in name
    }
    assert len({row.name for row in rows}) == len(rows)
    assert {row.choice.k for row in rows if row.choice.method == "phatgoose"} == {None, 1, 3, 4}
    some = contenders(EXPERTS, WIDTH, ["spectr"])
    assert {row.choice.method for row in some} == {"spectr"}
    assert {row.choice.allow for row in among(rows, EXPERTS[:2])} == {EXPERTS[:2]}
    assert "expert:clara" not in {row.name for row in among(rows, EXPERTS[:2])}


class Here(Executor):
    """Does at once, in this process, what is handed to it."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@pytest.mark.parametrize("toy", ["encoder-decoder"], indirect=True)
def test_a_trial_gives_the_same_table_again_and_another_seed_gives_other_experts(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial, "make_base", lambda *_: toy.base)
    monkeypatch.setattr(trial, "EXAMPLES", 40)
    monkeypatch.setattr(trial, "WRITTEN_INPUTS", 4)
    recipe = Recipe.model_validate(RECIPE.model_dump() | {"expert_steps": 4, "gate_steps": 2, "eval_every": 4})

    def carried_out(folder: Path, seed: int) -> run.Outcome:
        one = Trial("toy", 0, seed, "encoder-decoder", folder, recipe, test_rows=2)
        return run.run(one, run.Workshop(Here(), str), run.Scope(["phatgoose", "average-activation", "oracle"], [2, 3]))

    first, again = carried_out(tmp_path / "a", 0), carried_out(tmp_path / "b", 0)
    assert first.scores == again.scores
    assert first.by_pool == again.by_pool
    assert set(first.by_pool) == {2, 3}
    assert first.by_pool[3].exact.keys() > first.by_pool[2].exact.keys()
    other = replace(first.trial, folder=tmp_path / "c", seed=1)
    trial.train_one(other, trial.train_base(other), other.world.experts[0])
    weights = [next((tmp_path / name).glob(f"pool-*/{other.world.experts[0]}/bundles/*/*model*")) for name in "abc"]
    assert weights[0].read_bytes() == weights[1].read_bytes() != weights[2].read_bytes()
    bench.publish([first, again], tmp_path)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {key: found[key] for key in ("schema", "size", "suite_seed", "seeds", "experts")} == {
        "schema": 1, "size": "toy", "suite_seed": 0, "seeds": 2, "experts": 3,
    }  # fmt: skip
    assert set(found["methods"]["phatgoose"]) == {"all", "compose", "paraphrase", "mixture", "novel", "held_in"}
    written = (tmp_path / "toy-0-encoder-decoder.md").read_text()
    assert "| phatgoose |" in written
    assert "The first 2 experts" in written
    for outcome in (first, again):
        assert outcome.cost.expert > 0
        assert set(outcome.cost.gates) == {recipe.gate_steps}
    assert "| gates, 2 steps | 0." in written


def test_gates_of_a_tenth_of_the_experts_steps_are_compared_unless_others_are_named() -> None:
    assert bench._parser().parse_args([]).gate_steps == [20]
    assert RECIPE.expert_steps == 200
    assert bench._parser().parse_args(["--gate-steps", "5", "50"]).gate_steps == [5, 50]


def test_costs_are_told_as_shares_of_the_experts() -> None:
    assert table.costs([4.0, 6.0], {20: [0.2, 0.4], 100: [2.0, 3.0]}).splitlines()[2:] == [
        "| expert | 5.00 | 1.000 |",
        "| gates, 20 steps | 0.30 | 0.060 |",
        "| gates, 100 steps | 2.50 | 0.500 |",
    ]


def test_an_expert_whose_clock_nobody_kept_has_no_cost(tmp_path: Path) -> None:
    assert math.isnan(run._spent([tmp_path / "bundles" / "it"], "expert"))
