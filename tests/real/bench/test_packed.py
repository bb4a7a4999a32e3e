"""Several answers in one row are scored as if each stood alone."""

from pathlib import Path

import pytest

from router.base.batching import encode_pairs
from router.query.request import RoutingChoice
from tests.factories import make_t5
from tests.real.bench.packed import can_pack, packed
from tests.real.bench.test_lower import make_model

INPUTS = ["reverse a b c", "copy a", "now rotate it : a b"]
ANSWERS = [["c b a", "a"], ["a"], ["b a", "a b a", "b"]]


@pytest.mark.parametrize("method", ["base", "phatgoose", "nnls-request", "nnls-token", "expert:a"])
def test_answers_are_scored_as_if_each_stood_alone(tmp_path: Path, method: str) -> None:
    model, choice = make_model(tmp_path), RoutingChoice(method)
    assert can_pack(model)
    found = packed(model, INPUTS, ANSWERS, choice)
    for asked, answers, told in zip(INPUTS, ANSWERS, found, strict=True):
        inputs = [asked] * len(answers)
        alone = model.likelihoods(inputs, encode_pairs(model.base, inputs, answers), choice)
        assert [each.total for each in told] == pytest.approx([each.total for each in alone], rel=1e-4)
        assert [(each.tokens, each.greedy) for each in told] == [(each.tokens, each.greedy) for each in alone]


def test_an_encoder_decoder_is_not_asked_so(tmp_path: Path) -> None:
    assert not can_pack(make_model(tmp_path, make_t5))
