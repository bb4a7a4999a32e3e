"""The model of lm-evaluation-harness: against the harness's own for plain models, and by its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'greylag[harness]'"
)

from lm_eval.api.instance import Instance  # noqa: E402 - only where it is installed
from lm_eval.models.huggingface import HFLM  # noqa: E402

from protocol.errors import Code, Refused  # noqa: E402
from router.base import load_base  # noqa: E402
from router.harness import GreylagLM  # noqa: E402
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
doc_to_text: "{{{{input}}}}"
{more}
"""


def test_the_stock_command_runs_a_local_task_on_a_release(
    llama_base: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    node = pulled_node(llama_base, tmp_path_factory.mktemp("town"))
    rows = [
        {"input": text, "target": "d", "choices": ["d", "x y"], "label": at % 2} for at, text in enumerate(CONTEXTS)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kinds = {
        "choosing": ("multiple_choice", "doc_to_choice: choices\ndoc_to_target: label"),
        "writing": ("generate_until", 'doc_to_target: target\ngeneration_kwargs: {until: [";"], max_gen_toks: 3}'),
    }
    for name, (kind, more) in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, folder=tmp_path, kind=kind, more=more))
    program = "from router.cli import main; main()"
    said = subprocess.run(
        [
            sys.executable, "-c", program, "lm-eval", "--model", "greylag",
            "--model_args", f"workspace={node},method=phatgoose,k=1", "--batch_size", "2", "--device", "cpu",
            "--tasks", "choosing,writing", "--include_path", tmp_path, "--output_path", tmp_path / "out",
        ],
        capture_output=True, text=True, check=False, timeout=280,
        env=os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    (path,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(path.read_text())["results"]
    assert results["choosing"]["acc,none"] in (0, 0.25, 0.5, 0.75, 1)
    assert results["writing"]["exact_match,none"] == 0
    assert "choosing" in said.stdout


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(Refused, match="not installed") as refused:
        call("lm-eval", "--model", "greylag")
    assert refused.value.code is Code.SETTINGS_INVALID
    assert "harness" in refused.value.hint
