"""Rank classification against a slow float64 answer; batches against single rows."""

import functools
import json
import math

import pytest
import torch

from protocol.errors import Code, Refused
from router.base.likelihood import Likelihood
from router.base.tokens import encode_input, encode_target
from router.evaluation.prompts import BatchLimits, write_prompts
from router.evaluation.rows import Task, read_rows
from router.evaluation.scoring import judge, likeliest
from router.layer.routed_linear import routing
from router.model.planner import plan
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests.router.evaluation.conftest import RANKED

METHODS = ["phatgoose", "expert:ada/e1", "merged", "base"]


def judged(
    model: RoutedModel, task: Task, choice: RoutingChoice, limits: BatchLimits
) -> list[tuple[str, dict[str, float]]]:
    found = judge(model, task, write_prompts(model.base, task, limits), choice, limits)
    assert [each.number for each in found] == [row.number for row in task.rows]
    return [(each.answer, each.metrics) for each in found]


def slow_mean(model: RoutedModel, text: str, target: str, choice: RoutingChoice) -> float:
    """The mean log-likelihood of a target's tokens, one forward pass a token, nothing beside it in the batch."""
    base = model.base
    read, written, total = encode_input(base.tokenizer, text, base.architecture), list[int](), 0.0
    tokens = encode_target(base.tokenizer, target, base.architecture)
    for token in tokens:
        with torch.no_grad(), routing(plan(model.features, model.held, [text], [choice]).plan):
            if base.architecture == "decoder-only":
                logits = base.model(torch.tensor([read + written])).logits[0, -1].tolist()
            else:
                begun = torch.tensor([[0, *written]])
                logits = base.model(input_ids=torch.tensor([read]), decoder_input_ids=begun).logits[0, -1].tolist()
        total += logits[token] - math.log(math.fsum(math.exp(each) for each in logits))
        written.append(token)
    return total / len(tokens)


@pytest.mark.parametrize("method", METHODS)
def test_the_likeliest_choice_is_taken(model: RoutedModel, ranked: Task, method: str) -> None:
    choice = RoutingChoice(method)
    expected = []
    for row in ranked.rows:
        means = [slow_mean(model, row.input, each, choice) for each in row.choices]
        assert max(means) - sorted(means)[-2] > 1e-4  # else the test could not fail
        taken = row.choices[means.index(max(means))]
        expected.append((taken, {"accuracy": float(taken in row.targets)}))
    assert judged(model, ranked, choice, BatchLimits(batch=4)) == expected


def test_a_long_choice_does_not_lose_for_its_length(model: RoutedModel) -> None:
    """The mean decides: it differs from the sum in some row here."""
    rows = [json.dumps({"input": text, "target": "a", "choices": ["a", "a b c d e f g h"]}) for text in "abcdefgh"]
    (task,) = read_rows(rows, name="t")
    answers = [answer for answer, _ in judged(model, task, RoutingChoice("base"), BatchLimits())]
    means = [[slow_mean(model, row.input, each, RoutingChoice("base")) for each in row.choices] for row in task.rows]
    lengths = [len(encode_target(model.base.tokenizer, each, model.base.architecture)) for each in task.rows[0].choices]
    assert answers == [task.rows[0].choices[each.index(max(each))] for each in means]
    sums = [[mean * length for mean, length in zip(each, lengths, strict=True)] for each in means]
    assert [each.index(max(each)) for each in means] != [each.index(max(each)) for each in sums]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_batches_answer_as_single_rows(
    model: RoutedModel, ranked: Task, written: Task, method: str, batch: int
) -> None:
    choice = RoutingChoice(method)
    for task in (ranked, written):
        alone = [
            judged(model, Task(task.name, (row,)), choice, BatchLimits(batch=1, new_tokens=5))[0] for row in task.rows
        ]
        assert judged(model, task, choice, BatchLimits(batch=batch, new_tokens=5)) == alone


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_no_more_sequences_than_asked_for_are_in_memory(
    model: RoutedModel, ranked: Task, written: Task, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = model.base.model.forward, set[int]()

    def watched(*arguments: object, **more: object) -> object:
        ids = more.get("input_ids")
        if isinstance(ids, torch.Tensor):
            seen.add(len(ids))
        return forward(*arguments, **more)

    # wraps: the signature tells whether logits may be left out, and so must be seen.
    monkeypatch.setattr(model.base.model, "forward", functools.wraps(forward)(watched))
    for task in (ranked, written):
        judged(model, task, RoutingChoice("phatgoose"), BatchLimits(batch=batch, new_tokens=2))
    assert max(seen) == min(batch, 3)


def test_the_first_of_equals_is_taken_and_said() -> None:
    assert likeliest([-2.0, -1.0, -1.0]) == (1, True)
    assert likeliest([-1.0, -2.0, -2.0]) == (0, False)


def test_figures_that_are_none_are_refused(model: RoutedModel, ranked: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "likelihoods", lambda inputs, *_: [Likelihood(math.nan, 1, False)] * len(inputs))
    with pytest.raises(Refused, match=r"method base .* row 2") as refused:
        judged(model, ranked, RoutingChoice("base"), BatchLimits())
    assert refused.value.code is Code.NOT_FINITE


def test_long_inputs_are_cut_at_the_end_that_matters_less(model: RoutedModel) -> None:
    (task,) = read_rows([RANKED[0], RANKED[2], RANKED[1]], name="t")
    found = write_prompts(model.base, task, BatchLimits(input_tokens=4))
    assert (found.cut, [len(prompt.tokens) for prompt in found.prompts]) == (2, [4, 4, 3])
    kept = ["a b c", "z w v"] if model.base.architecture == "decoder-only" else ["please reverse it", "copy it :"]
    assert [prompt.text for prompt in found.prompts] == [*kept, "say d"]


def test_a_row_beyond_the_models_positions_is_refused(model: RoutedModel) -> None:
    (task,) = read_rows(
        [
            RANKED[1],
            json.dumps({"task": "kind", "input": "a " * 120, "target": "b", "choices": ["b", "c d e f g h i j k"]}),
        ],
        name="t",
    )
    if model.base.architecture == "encoder-decoder":
        assert len(write_prompts(model.base, task, BatchLimits()).prompts[1].tokens) == 121
        return
    with pytest.raises(Refused, match=r"Row 2 .* 121 tokens .* 10 for the answer; the model takes 128") as refused:
        write_prompts(model.base, task, BatchLimits())
    assert refused.value.code is Code.DATA_TOO_LONG
    assert write_prompts(model.base, task, BatchLimits(input_tokens=100)).cut == 1


def test_a_chat_is_asked_as_the_template_writes_it(model: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [{"role": "user", "content": "say it"}]
    (task,) = read_rows([json.dumps({"messages": chat, "target": "it"})], name="t")
    tokenizer = model.base.tokenizer
    assert write_prompts(model.base, task, BatchLimits()).prompts[0].text == "user: say it\nassistant:"
    template = "{% for each in messages %}<s> {{ each.content }} {% endfor %}now"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    text = write_prompts(model.base, task, BatchLimits()).prompts[0].text
    assert text == "<s> say it now"
    # The template has written the special tokens, so the tokenizer adds none.
    words = tokenizer.convert_ids_to_tokens(encode_input(tokenizer, text, model.base.architecture))
    assert words == ["<s>", "say", "it", "now"]
