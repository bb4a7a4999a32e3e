"""The model of lm-evaluation-harness: against the harness's own for plain models, and by its command line."""

import json
import math
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'greylag[harness]'"
)

from lm_eval.api.instance import Instance  # noqa: E402 - only where it is installed
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from protocol.errors import Code, Refused  # noqa: E402
from router.base.batching import Prompt, TokenPair  # noqa: E402
from router.base.likelihood import Likelihood  # noqa: E402
from router.base.loading import load_base  # noqa: E402
from router.evaluation.lm_eval import GreylagLM  # noqa: E402
from router.query.request import RoutingChoice  # noqa: E402
from tests import factories  # noqa: E402
from tests.router.verbs import call, pulled_node  # noqa: E402

CONTEXTS = ["please reverse it : a b c", "say d", "copy it : x y z w v", "say d"]
CONTINUATIONS = [" c b a", " d d", " x", " a b c d"]


@pytest.fixture(scope="module", params=["t5_base", "llama_base"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pulled_node(request.getfixturevalue(request.param), tmp_path_factory.mktemp("town"))


def ours(node: Path, **arguments: Any) -> GreylagLM:
    return GreylagLM(workspace=str(node), device="cpu", **arguments)


@pytest.fixture
def theirs(node: Path) -> HFLM:
    base = load_base((node / "router.toml").read_text().split('base = "')[1].split('"')[0], device="cpu")
    backend = "causal" if base.architecture == "decoder-only" else "seq2seq"
    return HFLM(pretrained=base.model, tokenizer=base.tokenizer, backend=backend, batch_size=2)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, at) for at, each in enumerate(arguments)]


PAIRS = requests("loglikelihood", *zip(CONTEXTS, CONTINUATIONS, strict=True), ("", "a b c"))
WRITING = requests("generate_until", *((text, {"until": ["\n"], "max_gen_toks": 5}) for text in CONTEXTS))


def test_a_base_alone_scores_as_the_harness_scores_it(node: Path, theirs: HFLM) -> None:
    for batch_size in (1, 3):
        found = ours(node, method="base", batch_size=batch_size).loglikelihood(PAIRS, disable_tqdm=True)
        expected = theirs.loglikelihood(PAIRS, disable_tqdm=True)
        assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], rel=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_whole_texts_are_scored_as_the_harness_scores_them(node: Path, theirs: HFLM) -> None:
    texts = requests("loglikelihood_rolling", ("a b c d e f g",), ("x",))
    theirs._max_length = 4  # several pieces for the first of them
    found = ours(node, method="base", max_length=4, batch_size=2).loglikelihood_rolling(texts, disable_tqdm=True)
    assert found == pytest.approx(theirs.loglikelihood_rolling(texts, disable_tqdm=True), rel=1e-4)


def test_a_base_alone_writes_as_the_harness_has_it_write(node: Path, theirs: HFLM) -> None:
    found = ours(node, method="base", batch_size=3).generate_until(WRITING, disable_tqdm=True)
    assert found == [text.strip() for text in theirs.generate_until(WRITING, disable_tqdm=True)]


def test_experts_take_part(node: Path) -> None:
    base = ours(node, method="base").loglikelihood(PAIRS, disable_tqdm=True)
    assert ours(node, batch_size=4).loglikelihood(PAIRS, disable_tqdm=True) != base
    one, both = (ours(node, k=k).loglikelihood(PAIRS, disable_tqdm=True) for k in (1, 2))
    assert one != both


def test_what_is_too_long_is_cut_on_the_left(node: Path) -> None:
    model = ours(node, max_length=6)
    causal = model.backend == "causal"
    context = model.tok_encode("x y z a b c d e")
    assert model._pair(context, [7]) == (context[-6:], [7])
    assert model._pair(context, [7, 8]) == (context[-5:] if causal else context[-6:], [7, 8])
    # A decoder needs room for the answer, too: three of six positions, one of them taken by the begin token.
    (answer,) = model.generate_until(requests("generate_until", ("x y z a b c d e", {"max_gen_toks": 3})))
    assert answer == model.model.generate(["d e" if causal else "a b c d e"], max_new_tokens=3)[0]


def test_who_reads_a_request_first_reads_the_tokens_that_are_scored(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = ours(node, max_length=4), list[tuple[Prompt, TokenPair]]()
    likelihoods = model.model.likelihoods

    def noted(prompts: list[Prompt], pairs: list[TokenPair], choice: RoutingChoice) -> list[Likelihood]:
        seen.extend(zip(prompts, pairs, strict=True))
        return likelihoods(prompts, pairs, choice)

    monkeypatch.setattr(model.model, "likelihoods", noted)
    model.loglikelihood(requests("loglikelihood", ("x y z a b c d e", " x y"), ("", "a b c")), disable_tqdm=True)
    model.loglikelihood_rolling(requests("loglikelihood_rolling", ("a b c d e f g",)), disable_tqdm=True)
    context, *others = seen
    assert context[0].tokens == context[1].input
    assert len(others) >= 3
    # Where there is no context there is what is to be scored.
    assert all(prompt.tokens == pair.target for prompt, pair in others)


def test_an_answer_that_leaves_no_room_for_its_input_is_refused(node: Path) -> None:
    model, wanted = ours(node, max_length=6), requests("generate_until", ("a", {"max_gen_toks": 6}))
    if model.backend == "causal":
        with pytest.raises(Refused, match="leaves no room") as refused:
            model.generate_until(wanted)
        assert refused.value.code is Code.REQUEST_INVALID
    else:
        assert len(model.generate_until(wanted)) == 1


def test_an_answer_ends_where_the_task_says(node: Path) -> None:
    model = ours(node)
    answers = {text: model.model.generate([text], max_new_tokens=6)[0] for text in factories.WORDS}
    text = max(answers, key=lambda each: len(set(answers[each].split())))
    last = answers[text].split()[-1]
    found = model.generate_until(requests("generate_until", (text, {"until": [last, "\n"], "max_gen_toks": 6})))
    assert found == [answers[text].split(last, 1)[0].strip()]
    assert len(answers[text]) > len(last)  # else there would be nothing to cut


@pytest.mark.parametrize("settings", [{"do_sample": True, "temperature": 1.0}, {"num_beams": 4}, {"typical_p": 0.5}])
def test_answers_that_are_drawn_are_refused(node: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        ours(node).generate_until(requests("generate_until", ("say d", settings)))
    assert refused.value.code is Code.REQUEST_INVALID


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"batch_size": "auto"}, Code.REQUEST_INVALID),
        ({"method": "fatgoose"}, Code.METHOD_UNKNOWN),
        ({"k": 0}, Code.REQUEST_INVALID),
        ({"release": 9}, Code.RELEASE_UNKNOWN),
    ],
)
def test_what_makes_no_model_is_refused(node: Path, arguments: dict[str, Any], code: Code) -> None:
    with pytest.raises(Refused) as refused:
        ours(node, **arguments)
    assert refused.value.code is code


TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/rows.jsonl
test_split: test
output_type: {kind}
{more}
metadata:
  model: !function router.evaluation.lm_eval.GreylagLM
"""
KINDS = {
    "choosing": ("multiple_choice", 'doc_to_text: "{{input}}"\ndoc_to_choice: choices\ndoc_to_target: label'),
    "reading": ("loglikelihood_rolling", 'doc_to_text: ""\ndoc_to_target: "{{input}}"'),
    "writing": (
        "generate_until",
        'doc_to_text: "{{input}}"\ndoc_to_target: target\ngeneration_kwargs: {until: [";"], max_gen_toks: 3}',
    ),
}


@pytest.mark.parametrize("command", [pytest.param("lm_eval", marks=pytest.mark.slow), "greylag-router lm-eval"])
def test_tasks_of_a_local_folder_run_on_a_release(
    command: str, llama_base: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stock, node = command == "lm_eval", pulled_node(llama_base, tmp_path_factory.mktemp("town"))
    rows = [
        {"input": text, "target": "d", "choices": ["d", "x y"], "label": at % 2} for at, text in enumerate(CONTEXTS)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, (kind, more) in KINDS.items():
        task = TASK.format(name=name, folder=tmp_path, kind=kind, more=more)
        # The stock command knows of us from the task alone.
        (tasks / f"{name}.yaml").write_text(task if stock else task.partition("metadata:")[0])
    program = ["-m", "lm_eval"] if stock else ["-c", "from router.cli.main import main; main()", "lm-eval"]
    chosen = ["--tasks", str(tasks)] if stock else ["--tasks", ",".join(KINDS), "--include_path", str(tasks)]
    said = subprocess.run(
        [
            sys.executable, *program, "--model", "greylag", "--model_args", f"workspace={node},method=phatgoose,k=1",
            "--batch_size", "2", "--device", "cpu", *chosen, "--output_path", tmp_path / "out",
        ],
        capture_output=True, text=True, check=False, timeout=280,
        env=os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    (path,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(path.read_text())["results"]
    model = ours(node, method="phatgoose", k=1)
    choices = requests("loglikelihood", *((text, f" {word}") for text in CONTEXTS for word in ("d", "x y")))
    totals = [total for total, _ in model.loglikelihood(choices, disable_tqdm=True)]
    right = [(totals[2 * at] < totals[2 * at + 1]) == at % 2 for at in range(len(CONTEXTS))]
    assert results["choosing"]["acc,none"] == sum(right) / len(right)
    texts = model.loglikelihood_rolling(requests("loglikelihood_rolling", *((text,) for text in CONTEXTS)))
    letters = sum(len(text.encode()) for text in CONTEXTS)
    assert results["reading"]["byte_perplexity,none"] == pytest.approx(math.exp(-sum(texts) / letters))
    settings = {"until": [";"], "max_gen_toks": 3}
    written = model.generate_until(requests("generate_until", *((text, settings) for text in CONTEXTS)))
    assert results["writing"]["exact_match,none"] == sum(text == "d" for text in written) / len(written)
    assert all(name in said.stdout for name in KINDS)


def test_the_package_names_its_model_where_the_harness_will_look() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"]["lm_eval.models"].items()
    found = EntryPoint(name, target, "lm_eval.models")
    assert found.load() is get_model(name) is GreylagLM


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Refused, match="This verb needs lm-eval, which is not installed") as refused:
        call("lm-eval", "--model", "greylag")
    assert refused.value.code is Code.SETTINGS_INVALID
    assert "harness" in refused.value.hint
