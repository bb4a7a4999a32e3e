"""What figures decide about an expert."""

import math
from collections.abc import Mapping

import pytest

from coordinator.policy.review_rule import Figures, doubt, judge_alone, judge_rise
from protocol.errors import Code, Refused
from protocol.spec import Review

REVIEW = Review()
BASE = Figures(largest=0.01, losses={"the rows": 1.0})


def refused(expert: Figures, base: Figures = BASE, review: Review = REVIEW) -> Refused:
    with pytest.raises(Refused) as found:
        judge_alone(expert, base, review)
    return found.value


def test_an_honest_expert_passes() -> None:
    judge_alone(Figures({"q": 41.7, "v": 0.01}, 0.02, {"the rows": 2.7}), BASE, REVIEW)
    judge_alone(Figures({"q": 0.3}), Figures(), REVIEW)


@pytest.mark.parametrize("norm", [64.1, 1e41, math.inf, math.nan])
def test_a_norm_over_the_cap(norm: float) -> None:
    found = refused(Figures({"q": 0.1, "encoder.v": norm}, 0.02, {"the rows": 1.0}))
    assert found.code is Code.NORM_LIMIT
    assert "encoder.v" in found.message


def test_numbers_that_are_none_or_nearly_too_large() -> None:
    assert refused(Figures({}, 1.0, {})).code is Code.PROBE_FAILED
    assert refused(Figures({}, math.nan, {})).code is Code.PROBE_FAILED
    assert refused(Figures({}, 0.126, {"the rows": 1.0})).code is Code.HEADROOM
    judge_alone(Figures({}, 0.2, {}), Figures(largest=0.2), REVIEW)


@pytest.mark.parametrize("rise", [4.1, math.inf, math.nan])
def test_a_loss_that_rises(rise: float) -> None:
    found = refused(Figures({}, 0.0, {"the rows": 1.0 + rise}))
    assert found.code is Code.HARMFUL
    assert "the rows" in found.message
    judge_rise({"a": 1.5}, {"a": 1.0}, 0.5, "beside the others")
    with pytest.raises(Refused):
        judge_rise({"a": 1.5, "b": 3.0}, {"a": 1.0, "b": 1.0}, 0.6, "beside the others")


OTHERS: list[Mapping[str, float]] = [{"q": 0.2, "v": 1.0}, {"q": 0.3, "v": 1.1}, {"q": 0.25, "v": 0.9}, {"q": 0.2}]


@pytest.mark.parametrize("norms", [{"q": 1.7}, {"v": 7.9, "q": 0.1}, {"k": 1.9}, {}])
def test_one_like_the_others_is_let_in(norms: dict[str, float]) -> None:
    assert doubt(norms, OTHERS, REVIEW) is None


@pytest.mark.parametrize("norms", [{"q": 2.0}, {"v": 8.1, "q": 0.2}, {"k": 12.0}, {"q": math.inf}])
def test_one_that_is_far_larger_is_doubted(norms: dict[str, float]) -> None:
    found = doubt(norms, OTHERS, REVIEW)
    assert found is not None
    assert found.code is Code.NORM_UNUSUAL


def test_too_few_others_doubt_nothing() -> None:
    assert doubt({"q": 60.0}, OTHERS[:2], REVIEW) is None
    assert doubt({"q": 60.0}, [{"q": 0.0}] * 3, REVIEW) is None


def test_a_pool_of_very_different_experts_doubts_later() -> None:
    wide: list[Mapping[str, float]] = [{"q": 10.0**power} for power in (-2, -1, 0, 1, 1.5)]
    assert doubt({"q": 50.0}, wide, REVIEW) is None
    assert doubt({"q": 50.0}, wide, Review(deviations=1.0)) is not None
