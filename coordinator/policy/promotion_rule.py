"""The rule by which held-out data decide about a candidate: a few numbers a node in, one sentence out."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import NamedTuple

from protocol.spec import Promotion

LEAST_LOSS, MOST_LOSS = 0.0, 16.0
"""Range that a loss is clipped to, in nats a token; guessing evenly among nine million tokens costs as much."""
NOISE = 0.1
"""Share of the margin by which the middle may rise where all together gain."""
ENOUGH = 3
"""So many nodes have a middle that none of them moves alone."""


class Loss(NamedTuple):
    """What one node measured on its held-out rows, in nats a token."""

    candidate: float
    now: float
    """Of the newest release; of the base model where there is no release yet."""


class PromotionVerdict(NamedTuple):
    """What the rule says."""

    promoted: bool
    reason: str


def read_loss(metrics: Mapping[str, float]) -> Loss | None:
    """Take the two losses that count from an answer; None if it lacks one."""
    candidate, now = metrics.get("loss_candidate"), metrics.get("loss_release", metrics.get("loss_base"))
    return None if candidate is None or now is None else Loss(candidate, now)


def weigh(losses: Sequence[Loss], promotion: Promotion) -> PromotionVerdict | None:
    """Decide: the median change of loss must not rise, and not too many nodes may lose more than the margin.

    No node decides alone where there are three. One that gains a lot by an expert of its own carries the others over
    noise, a tenth of the margin, and no further; one that says that it is hurt holds nothing back, unless the pool
    lets nobody be hurt at all. Every node counts alike, however much data it has: a size would say something about
    the data, and the largest contributor would decide for all.

    Args:
        losses: One a node that answered; clipped to what a loss may be.
        promotion: The pool's figures.

    Returns:
        The verdict; None if too few nodes answered to decide anything.
    """
    if len(losses) < promotion.min_nodes:
        return None
    changes = [_clipped(loss.candidate) - _clipped(loss.now) for loss in losses]
    middle, hurt = median(changes), sum(change > promotion.margin for change in changes)
    enough = len(changes) >= ENOUGH
    noise = NOISE * promotion.margin if enough and fmean(changes) <= 0 else 0.0
    alone = hurt == 1 and enough and promotion.max_hurt > 0
    said = f"median change of loss {middle:+.4f} nats a token over {len(changes)} nodes, {hurt} hurt"
    if middle > noise:
        return PromotionVerdict(promoted=False, reason=f"Held back: {said}; the median must not rise.")
    if hurt > promotion.max_hurt * len(changes) and not alone:
        return PromotionVerdict(promoted=False, reason=f"Held back: {said}; at most {promotion.max_hurt:.0%} may be.")
    return PromotionVerdict(promoted=True, reason=f"Promoted: {said}.")


def _clipped(loss: float) -> float:
    return min(max(loss, LEAST_LOSS), MOST_LOSS)
