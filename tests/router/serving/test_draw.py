"""How tokens are drawn."""

import pytest
import torch

from protocol.errors import Code, Refused
from router.serving.batches.draw import Dice, Due, draw
from router.serving.engine import Sampling

SHARES = torch.tensor([0.1, 0.4, 0.2, 0.3])


def turn(**sampling: float | None) -> Due:
    return Due(Dice(Sampling(**sampling)), ((), ()))  # type: ignore[arg-type] # figures of any kind


def frequencies(drawing: Due, scores: torch.Tensor, times: int = 4000) -> torch.Tensor:
    counts = torch.zeros(len(scores))
    for _ in range(times):
        counts[draw(scores.unsqueeze(0), [drawing])[0].token] += 1
    return counts / times


def test_tokens_come_as_often_as_the_model_and_the_temperature_say() -> None:
    found = frequencies(turn(temperature=1.0, seed=1), SHARES.log())
    torch.testing.assert_close(found, SHARES, atol=0.03, rtol=0)
    sharper = SHARES**2 / (SHARES**2).sum()
    torch.testing.assert_close(frequencies(turn(temperature=0.5, seed=1), SHARES.log()), sharper, atol=0.03, rtol=0)


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, [1]), (0.39, [1]), (0.5, [1, 3]), (0.8, [1, 2, 3])])
def test_only_the_likeliest_are_drawn_that_together_reach_top_p(top_p: float, kept: list[int]) -> None:
    expected = torch.zeros(4)
    expected[kept] = SHARES[kept] / SHARES[kept].sum()
    found = frequencies(turn(temperature=1.0, top_p=top_p, seed=2), SHARES.log(), 1000)
    assert found.nonzero().flatten().tolist() == kept
    torch.testing.assert_close(found, expected, atol=0.06, rtol=0)


def test_a_seed_draws_the_same_whoever_else_draws() -> None:
    scores = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    alone, mine, other = (turn(temperature=1.0, seed=-7) for _ in range(3))
    drawn = [draw(row.unsqueeze(0), [alone])[0] for row in scores]
    greedy, random = turn(), turn(temperature=2.0, seed=None)
    beside = [draw(torch.stack([-row, row, row]), [random, mine, greedy]) for row in scores]
    assert [each[1] for each in beside] == drawn
    assert [each[2].token for each in beside] == scores.argmax(-1).tolist()
    assert [draw(row.unsqueeze(0), [other])[0] for row in scores] == drawn
    assert [draw(row.unsqueeze(0), [mine])[0] for row in scores] != drawn  # its dice were thrown before


def test_log_probabilities_are_those_of_the_model_itself() -> None:
    scores = torch.randn(3, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    turns = [turn(top_logprobs=2, temperature=1.5, seed=3), turn(), turn(top_logprobs=0)]
    expected = scores.float().log_softmax(-1)
    drawn = draw(scores, turns)
    assert drawn[0].logprob == pytest.approx(float(expected[0, drawn[0].token]))
    best = expected[0].topk(2)
    assert [token for token, _ in drawn[0].top] == best.indices.tolist()
    assert [share for _, share in drawn[0].top] == pytest.approx(best.values.tolist())
    assert (drawn[1].logprob, drawn[1].top) == (None, ())
    assert drawn[2].logprob == pytest.approx(float(expected[2].max()))
    assert drawn[2].top == ()


def test_a_checkpoint_s_penalty_counts_for_its_request_alone() -> None:
    seen: list[list[int]] = []

    def penalty(before: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(before[0].tolist())
        return scores.scatter(1, before, -torch.inf)

    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    punished = Due(Dice(Sampling(top_logprobs=0), penalty), ([0], [1]))
    drawn = draw(scores, [punished, turn()])
    assert ([each.token for each in drawn], seen) == ([2, 0], [[0, 1]])
    assert drawn[0].logprob == pytest.approx(float(scores[0].log_softmax(-1)[2]))
    assert scores[0, 0] == 3.0


@pytest.mark.parametrize(
    "figure",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": 1025}, {"temperature": -0.1}, {"temperature": 2.1},
        {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": 1 << 63}, {"top_logprobs": 21},
        {"top_logprobs": -1}, {"stop": tuple("abcde")}, {"stop": ("a" * 201,)},
    ],
)  # fmt: skip
def test_figures_out_of_range_are_refused(figure: dict[str, float]) -> None:
    with pytest.raises(Refused) as refused:
        Sampling(**figure)  # type: ignore[arg-type] # that is the point
    assert refused.value.code is Code.REQUEST_INVALID
    assert next(iter(figure)).partition("_")[0] in refused.value.message or "stop" in refused.value.message


def test_empty_texts_stop_nothing() -> None:
    assert Sampling(stop=("", "a")).stop == ("a",)
