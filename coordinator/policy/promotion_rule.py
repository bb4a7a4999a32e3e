"""The rule by which held-out data decide about a candidate: a few numbers a node in, one sentence out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from protocol.spec import Promotion


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
    """Decide: the mean loss must not rise, and not too many nodes may lose more than the margin.

    Every node counts alike, however much data it has: a size would say something about the data, and the
    largest contributor would decide for all.

    Args:
        losses: One a node that answered.
        promotion: The pool's figures.

    Returns:
        The verdict; None if too few nodes answered to decide anything.
    """
    if len(losses) < promotion.min_nodes:
        return None
    gains = [loss.candidate - loss.now for loss in losses]
    mean, hurt = sum(gains) / len(gains), sum(gain > promotion.margin for gain in gains)
    share = hurt / len(gains)
    said = f"mean loss {mean:+.4f} nats a token over {len(gains)} nodes, {hurt} hurt"
    if mean > 0:
        return PromotionVerdict(promoted=False, reason=f"Held back: {said}; the mean must not rise.")
    if share > promotion.max_hurt:
        return PromotionVerdict(promoted=False, reason=f"Held back: {said}; at most {promotion.max_hurt:.0%} may be.")
    return PromotionVerdict(promoted=True, reason=f"Promoted: {said}.")
