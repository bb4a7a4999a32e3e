"""Scores of targets: against a slow answer in float64, alone and in batches, whatever the padding."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from router.base.batching import TokenPair, encode_pairs
from router.base.likelihood import Likelihood, likelihoods
from router.base.loading import Base, load_base
from router.base.tokens import encode_input, encode_target

INPUTS = ["please reverse it : a b c", "say d", "copy it : x y z w v", "say d", "now"]
TARGETS = ["c b a", "d d d d d d", "x", "d", "a b"]


@pytest.fixture(params=["t5_base", "llama_base", "gpt2_base"])
def base(request: pytest.FixtureRequest) -> Base:
    return load_base(str(request.getfixturevalue(request.param)), device="cpu", dtype="float64")


def slowly(base: Base, text: str, target: str) -> Likelihood:
    """One token of one target after another, without batch, padding, cache or mask."""
    read = encode_input(base.tokenizer, text, base.architecture)
    total, greedy, written = 0.0, True, list[int]()
    wanted = encode_target(base.tokenizer, target, base.architecture)
    for token in wanted:
        with torch.no_grad():
            if base.architecture == "decoder-only":
                logits = base.model(torch.tensor([read + written])).logits[0, -1]
            else:
                begun = torch.tensor([[0, *written]])
                logits = base.model(input_ids=torch.tensor([read]), decoder_input_ids=begun).logits[0, -1]
        chances = [math.exp(value) for value in logits.tolist()]
        total += math.log(chances[token] / sum(chances))
        greedy &= chances[token] == max(chances)
        written.append(token)
    return Likelihood(total, len(wanted), greedy)


def test_targets_are_scored_as_slowly(base: Base) -> None:
    fast = likelihoods(base, encode_pairs(base, INPUTS, TARGETS))
    for text, target, found in zip(INPUTS, TARGETS, fast, strict=True):
        slow = slowly(base, text, target)
        assert found.total == pytest.approx(slow.total, rel=1e-5)
        assert (found.tokens, found.greedy) == (slow.tokens, slow.greedy)
        assert found.mean == pytest.approx(slow.total / slow.tokens, rel=1e-5)


def test_what_the_model_writes_is_greedy(base: Base) -> None:
    for text in INPUTS:
        read = encode_input(base.tokenizer, text, base.architecture)
        with torch.no_grad():
            out = base.model.generate(torch.tensor([read]), max_new_tokens=4, do_sample=False)[0].tolist()
        written = out[len(read) :] if base.architecture == "decoder-only" else out[1:]
        other = [*written[:-1], (written[-1] + 1) % 30]
        found = likelihoods(base, [TokenPair(read, written), TokenPair(read, other)])
        assert [each.greedy for each in found] == [True, False]


def test_padding_changes_nothing(base: Base) -> None:
    pairs = encode_pairs(base, INPUTS, TARGETS)
    together = likelihoods(base, pairs)
    for pair, found in zip(pairs, together, strict=True):
        (alone,) = likelihoods(base, [pair])
        assert found.total == pytest.approx(alone.total, rel=1e-9)
        assert (found.tokens, found.greedy) == (alone.tokens, alone.greedy)


def test_a_base_that_computes_every_logit_scores_alike(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = encode_pairs(base, INPUTS, TARGETS)
    before = likelihoods(base, pairs)
    forward = base.model.forward

    def whole(input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    monkeypatch.setattr(base.model, "forward", whole)
    assert [each.total for each in likelihoods(base, pairs)] == pytest.approx([each.total for each in before], rel=1e-9)


def test_a_decoder_predicts_nothing_before_its_first_token(llama_base: Path) -> None:
    base = load_base(str(llama_base), device="cpu")
    none, one = likelihoods(base, [TokenPair([], [5]), TokenPair([], [5, 6])])
    assert none.tokens == 0
    assert math.isnan(none.mean)
    assert one.tokens == 1
    assert one.total == pytest.approx(likelihoods(base, [TokenPair([5], [6])])[0].total, rel=1e-5)
