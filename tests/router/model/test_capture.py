"""The capped shares, held against a slow look at one token after another."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from router.model.capture import ALIKE, Sets, find_sets, fit_biases

EXCESS = 1 + 1e-5
"""float32 against float64."""


def slow_share(scores: Tensor, bias: Sequence[float], members: Sequence[int], k: int) -> float:
    """What experts are given together, token by token, as `router.layer.topk` says it."""
    total = 0.0
    for row in scores.tolist():
        biased = [score + lower for score, lower in zip(row, bias, strict=True)]
        best = sorted(range(len(biased)), key=lambda z: (-biased[z], z))[:k]
        weights = {z: math.exp(biased[z] - biased[best[0]]) for z in best}
        total += sum(weights.get(z, 0.0) for z in members) / sum(weights.values())
    return total / len(scores)


def shares(scores: Tensor, k: int) -> Tensor:
    best, experts = scores.topk(min(k, scores.shape[1]), dim=1)
    given = torch.softmax(best, dim=1).flatten()
    return scores.new_zeros(scores.shape[1]).index_add_(0, experts.flatten(), given) / len(scores)


def likeness(scores: Tensor) -> Tensor:
    apart = scores - scores.mean(0)
    unit = apart / torch.linalg.vector_norm(apart, dim=0).clamp(min=torch.finfo(scores.dtype).tiny)
    return unit.T @ unit


def slow_sets(contributors: Sequence[str]) -> list[list[int]]:
    return [[z for z, name in enumerate(contributors) if name == one] for one in dict.fromkeys(contributors)]


def apart(contributors: Sequence[str]) -> Sets:
    """Sets of experts that are like nobody."""
    return find_sets(torch.eye(len(contributors)), contributors)


@st.composite
def pools(draw: st.DrawFn) -> tuple[Tensor, list[str], int, float]:
    """Scores of tokens that are told apart, some experts far above the others; whose they are; k and c."""
    n = draw(st.integers(2, 9))
    contributors = [f"c{draw(st.integers(0, n - 1))}" for _ in range(n)]
    torch.manual_seed(draw(st.integers(0, 1 << 16)))
    scores = torch.randn(200, n) * draw(st.sampled_from([0.1, 1.0, 4.0]))
    level = torch.tensor([draw(st.sampled_from([0.0, 0.0, 1.0, 5.0])) for _ in range(n)])
    return scores + level, contributors, draw(st.integers(1, 3)), draw(st.sampled_from([1.25, 1.5, 3.0]))


@settings(deadline=None, max_examples=60)
@given(pools())
def test_no_contributor_takes_more_than_its_shares_afterwards(pool: tuple[Tensor, list[str], int, float]) -> None:
    scores, contributors, k, c = pool
    fitted = fit_biases(scores, apart(contributors), k, c)
    bias, parties = fitted.bias.tolist(), len(set(contributors))
    assert max(bias) == 0  # somebody is never lowered
    # Tokens do not always have a step between too much and too little, but no step is more than a whole token.
    assert fitted.excess <= 1 + parties / c / len(scores)
    exact, reached = scores.double(), max(fitted.excess, 1)
    for mine in slow_sets(contributors):
        assert slow_share(exact, bias, mine, k) <= c / parties * reached * EXCESS
        if slow_share(exact, [0.0] * len(bias), mine, k) > c / parties * reached * EXCESS:
            assert all(bias[z] < 0 for z in mine)
        assert len({bias[z] for z in mine}) == 1  # lowered as a whole: who is best among one's own stays so


@settings(deadline=None, max_examples=40)
@given(pools())
def test_nothing_changes_where_nobody_takes_too_much(pool: tuple[Tensor, list[str], int, float]) -> None:
    scores, contributors, k, _ = pool
    worst = max(slow_share(scores.double(), [0.0] * len(contributors), mine, k) for mine in slow_sets(contributors))
    fitted = fit_biases(scores, apart(contributors), k, worst * len(set(contributors)) * EXCESS)
    assert not fitted.bias.any()


def test_nobody_is_lowered_much_further_than_needed() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2000, 7) + torch.tensor([3.0, 0, 0, 0, 0, 0, 0])
    bias = fit_biases(scores, apart("abcdefg"), 2, 1.5).bias
    assert bias[1:].eq(0).all()
    least = next(b / 100 for b in range(0, -1000, -1) if slow_share(scores, [b / 100, *[0.0] * 6], [0], 2) <= 1.5 / 7)
    assert least - 0.06 <= bias[0].item() <= least + 0.01


def test_twenty_of_one_mind_take_what_one_of_them_would() -> None:
    torch.manual_seed(1)
    honest, mean = torch.randn(4000, 6), 2 + 0.3 * torch.randn(4000, 1)
    many = torch.cat([honest, mean + 0.01 * torch.randn(4000, 20)], dim=1)
    one = many[:, :7]
    for table in (one, many):
        sets = find_sets(likeness(table), [f"c{z}" for z in range(table.shape[1])])
        assert sets.parties == 7
        bias = fit_biases(table, sets, 2, 1.5).bias
        taken = shares(table + bias, 2)[6:].sum().item()
        assert taken == pytest.approx(1.5 / 7, rel=0.06)
        assert taken <= 1.5 / 7 * EXCESS
        assert not bias[:6].any()


def test_who_came_first_is_not_lowered_for_those_who_are_like_him() -> None:
    torch.manual_seed(2)
    scores = torch.randn(2000, 5)
    scores[:, 0] += 0.2
    table = torch.cat([scores, scores[:, :1] + 0.05 * torch.randn(2000, 8)], dim=1)
    sets = find_sets(likeness(table), [f"c{z}" for z in range(13)])
    bias = fit_biases(table, sets, 2, 1.5).bias
    assert not bias[:5].any()
    assert (bias[5:] < 0).all()


def test_nobody_joins_two_who_were_apart() -> None:
    alike = torch.tensor([[1, 0.5, 0.95], [0.5, 1, 0.95], [0.95, 0.95, 1]])
    sets = find_sets(alike, ["a", "b", "bridge"])
    assert sets.parties == 2
    assert sets.members.tolist()[3:] == [[True, False, True], [False, True, False]]


def test_ones_own_alike_are_one_party_and_so_are_ones_many() -> None:
    own = torch.full((3, 3), ALIKE)
    assert find_sets(own, ["a", "a", "a"]).parties == 1
    assert apart(["a", "a", "b"]).parties == 2


def test_text_that_leaves_no_room_is_told_and_changes_nobody() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(50, 1)
    fitted = fit_biases(scores, apart("abcd"), 1, 1.5)
    assert fitted.excess > 1
    assert torch.isfinite(fitted.bias).all()


def test_likeness_knows_no_scale_and_no_level() -> None:
    torch.manual_seed(3)
    one = torch.randn(500)
    table = torch.stack([one, 5 + 3 * one, -one, torch.ones(500)], dim=1)
    torch.testing.assert_close(likeness(table)[0], torch.tensor([1.0, 1.0, -1.0, 0.0]), atol=1e-5, rtol=0)


def test_newcomers_take_together_what_one_of_them_would() -> None:
    torch.manual_seed(4)
    honest, many = torch.randn(4000, 6), 2 + torch.randn(4000, 20)
    table = torch.cat([honest, many], dim=1)
    names = [f"c{z}" for z in range(26)]
    sets = find_sets(torch.eye(26), names, names[6:])
    assert sets.parties == 7
    bias = fit_biases(table, sets, 2, 1.5).bias
    assert 1.4 / 7 < shares(table + bias, 2)[6:].sum().item() <= 1.5 / 7 * EXCESS
    assert not bias[:6].any()


def test_where_all_are_new_each_counts() -> None:
    assert find_sets(torch.eye(3), ["a", "b", "c"], ["a", "b", "c"]).parties == 3
    assert find_sets(torch.eye(3), ["a", "b", "c"], ["b", "c"]).parties == 2
    assert find_sets(torch.eye(3), ["a", "b", "c"]).parties == 3
