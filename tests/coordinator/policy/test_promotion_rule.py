import pytest

from coordinator.policy.promotion_rule import Loss, read_loss, weigh
from protocol.spec import Promotion

RULE = Promotion(when="evaluated", min_nodes=2, margin=0.05, max_hurt=0.25)


def losses(*gains: float) -> list[Loss]:
    return [Loss(candidate=1.0 + gain, now=1.0) for gain in gains]


@pytest.mark.parametrize(
    ("gains", "promoted"),
    [
        ((-0.1, -0.1), True),
        ((0.0, 0.0), True),
        ((0.04, -0.1), True),  # a loss within the margin hurts nobody
        ((0.01, 0.01), False),  # the mean rises
        ((0.2, -0.1, -0.1, -0.1), True),  # one of four is hurt: a quarter may be
        ((0.2, -0.3), False),  # half of them are
        ((0.2, 0.2, -0.5, -0.5, -0.5), False),
    ],
)
def test_the_rule_decides(gains: tuple[float, ...], *, promoted: bool) -> None:
    verdict = weigh(losses(*gains), RULE)
    assert verdict is not None
    assert verdict.promoted is promoted
    assert f"over {len(gains)} nodes" in verdict.reason


def test_too_few_answers_decide_nothing() -> None:
    assert weigh(losses(-1.0), RULE) is None
    assert weigh([], RULE) is None


def test_the_first_candidate_is_held_against_the_base() -> None:
    assert read_loss({"loss_candidate": 1.0, "loss_base": 2.0}) == Loss(1.0, 2.0)
    assert read_loss({"loss_candidate": 1.0, "loss_base": 2.0, "loss_release": 1.5}) == Loss(1.0, 1.5)
    assert read_loss({"loss_base": 2.0}) is None
    assert read_loss({"loss_candidate": 2.0}) is None
