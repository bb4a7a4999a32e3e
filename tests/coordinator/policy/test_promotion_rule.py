import itertools

import pytest

from coordinator.policy.promotion_rule import Loss, read_loss, weigh
from protocol.fleet.reply import read_reply
from protocol.spec import Promotion

RULE = Promotion(when="evaluated", min_nodes=2, margin=0.05, max_hurt=0.25)
FAR = 1e12
"""The largest number that a reply may hold."""


def losses(*gains: float) -> list[Loss]:
    return [Loss(candidate=1.0 + gain, now=1.0) for gain in gains]


@pytest.mark.parametrize(
    ("gains", "promoted"),
    [
        ((-0.1, -0.1), True),
        ((0.0, 0.0), True),
        ((0.04, -0.1), True),  # a loss within the margin hurts nobody
        ((0.01, 0.01), False),  # the middle rises
        ((0.2, -0.1, -0.1, -0.1), True),  # one of four is hurt: a quarter may be
        ((0.2, -0.3), False),  # half of them are
        ((0.2, 0.2, -0.5, -0.5, -0.5), False),
        ((-0.3, 0.001, 0.002, 0.001, 0.003), True),  # one gains by an expert of its own, for the others it is noise
        ((-0.3, 0.01, 0.02, 0.01, 0.03), False),  # one gains, and all others pay
        ((0.001, 0.002, 0.001), False),  # nobody gains
    ],
)
def test_the_rule_decides(gains: tuple[float, ...], *, promoted: bool) -> None:
    verdict = weigh(losses(*gains), RULE)
    assert verdict is not None
    assert verdict.promoted is promoted
    assert f"over {len(gains)} nodes" in verdict.reason


@pytest.mark.parametrize(("change", "promoted"), [(-0.2, True), (-0.01, True), (0.0, True), (0.01, False)])
def test_one_or_two_nodes_decide_as_they_measure(change: float, *, promoted: bool) -> None:
    for nodes in (1, 2):
        verdict = weigh(losses(*[change] * nodes), RULE.model_copy(update={"min_nodes": 1}))
        assert verdict is not None
        assert verdict.promoted is promoted


@pytest.mark.parametrize("lie", [Loss(-FAR, FAR), Loss(0.0, FAR), Loss(-FAR, 1.0), Loss(FAR, 1.0), Loss(FAR, -FAR)])
@pytest.mark.parametrize(("nodes", "liars"), [(3, 1), (4, 1), (5, 1), (5, 2), (9, 1), (9, 2)])
def test_liars_never_decide_against_an_honest_majority(nodes: int, liars: int, lie: Loss) -> None:
    honest = nodes - liars
    poor = weigh([*losses(*[0.02] * honest), *[lie] * liars], RULE)
    assert poor is not None
    assert not poor.promoted
    good = weigh([*losses(*[-0.1, -0.01] * nodes)[:honest], *[lie] * liars], RULE)
    assert good is not None
    # More nodes than `max_hurt` allows hold a candidate back by saying that they are hurt: that is what it is for.
    vetoed = lie.candidate > lie.now and liars > 1 and liars > RULE.max_hurt * nodes
    assert good.promoted is not vetoed


def test_what_one_node_says_moves_the_verdict_by_no_more_than_noise() -> None:
    """Whatever the others measure: a candidate that a liar carries costs their middle a tenth of a margin."""
    for honest in itertools.product((-0.2, -0.004, 0.0, 0.004, 0.006, 0.2), repeat=3):
        verdict = weigh([*losses(*honest), Loss(-FAR, FAR)], RULE)
        assert verdict is not None
        assert not verdict.promoted or sum(sorted(honest)[:2]) <= 2 * 0.005 + 1e-12


@pytest.mark.parametrize(
    ("lie", "told"), [(Loss(-FAR, 1.0), "-0.5000"), (Loss(FAR, 1.0), "+7.5000"), (Loss(FAR, -FAR), "+8.0000")]
)
def test_a_loss_is_taken_for_no_more_than_a_loss_can_be(lie: Loss, told: str) -> None:
    verdict = weigh([Loss(1.0, 1.0), lie], RULE)
    assert verdict is not None
    assert f"median change of loss {told} nats a token over 2 nodes" in verdict.reason


def test_where_nobody_may_be_hurt_one_word_holds_back() -> None:
    verdict = weigh(losses(-0.1, -0.1, -0.1, -0.1, 0.2), RULE.model_copy(update={"max_hurt": 0.0}))
    assert verdict is not None
    assert not verdict.promoted


def test_too_few_answers_decide_nothing() -> None:
    assert weigh(losses(-1.0), RULE) is None
    assert weigh([], RULE) is None


def test_the_first_candidate_is_held_against_the_base() -> None:
    assert read_loss({"loss_candidate": 1.0, "loss_base": 2.0}) == Loss(1.0, 2.0)
    assert read_loss({"loss_candidate": 1.0, "loss_base": 2.0, "loss_release": 1.5}) == Loss(1.0, 1.5)
    assert read_loss({"loss_base": 2.0}) is None
    assert read_loss({"loss_candidate": 2.0}) is None


def test_the_farthest_lie_is_what_a_reply_may_hold() -> None:
    assert read_reply("evaluate", {"state": "done"}, {"loss_candidate": -FAR, "loss_base": FAR}).metrics
