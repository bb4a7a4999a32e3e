"""What figures of an expert decide about it; who measures them, and how, is `coordinator.review`'s."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from protocol.errors import Code, Refused
from protocol.spec import Review

ENOUGH = 3
"""So many others have a median that none of them moves alone."""
NEAR_GATES = 0.9
"""From which correlation of scores on an expert chooses as another does; releases then count them as one."""
_NORMAL = 1.4826
"""A normal's standard deviation over its median absolute deviation."""
_SMALLER = "Train it again with a smaller learning rate, alpha or fewer steps."
Losses = Mapping[str, float]
"""Means in nats a token, by what the rows are called in a sentence; none where the operator gave no rows."""


@dataclass(frozen=True)
class Figures:
    """What was measured of an expert, or of the base alone, whose norms are none."""

    norms: Mapping[str, float] = field(default_factory=dict)
    """By module: how much it changes it, over the base's own."""
    largest: float = 0.0
    """The largest number with the expert alone at weight one, as a share of the dtype's; 1 for none that is finite."""
    losses: Losses = field(default_factory=dict)


def judge_alone(expert: Figures, base: Figures, review: Review) -> None:
    """Refuse an expert for what it does to the base by itself.

    Raises:
        Refused: `NORM_LIMIT`, `PROBE_FAILED`, `HEADROOM` or `HARMFUL`.
    """
    if over := [(path, norm) for path, norm in expert.norms.items() if not norm <= review.max_norm]:
        path, norm = over[0]
        what = (
            f"At {path} the expert changes the base by {norm:.3g} times its norm; the pool takes {review.max_norm:g}."
        )
        raise Refused(Code.NORM_LIMIT, what, _SMALLER)
    if not expert.largest < 1:
        what = "With this expert alone the model's numbers on the probe are not finite."
        raise Refused(Code.PROBE_FAILED, what, "Train it again with a smaller learning rate.")
    # A base may use its dtype to the full by itself.
    if expert.largest > max(1 / review.headroom, base.largest):
        what = f"With this expert alone the model meets numbers of {expert.largest:.2g} of the largest its dtype holds"
        raise Refused(Code.HEADROOM, f"{what}; the pool takes {1 / review.headroom:.2g}.", _SMALLER)
    judge_rise(expert.losses, base.losses, review.max_rise_alone, "with this expert alone")


def judge_rise(now: Losses, before: Losses, most: float, how: str) -> None:
    """Refuse an expert that raises the loss on the operator's rows by more than a margin in nats a token (`HARMFUL`).

    Args:
        now: With it.
        before: Without it.
        most: The margin.
        how: In which company, for the sentence.
    """
    for rows, loss in before.items():
        if not (rise := now[rows] - loss) <= most:
            what = f"On {rows} the loss rises by {rise:.2f} nats a token {how}; the pool takes {most:g}."
            raise Refused(Code.HARMFUL, what, "Train it longer or on other data.")


def doubt(norms: Mapping[str, float], others: Sequence[Mapping[str, float]], review: Review) -> Refused | None:
    """Say why a person must look at an expert that is large beside the pool's others, module by module.

    A module that too few others touch is held against all that they do anywhere; a pool of too few doubts nothing.

    Args:
        norms: The expert's.
        others: Those of experts that were let in.
        review: The pool's figures.

    Returns:
        `NORM_UNUSUAL`, or None.
    """
    if len(others) < ENOUGH:
        return None
    for path, norm in norms.items():
        there = [other[path] for other in others if path in other]
        if len(there) < ENOUGH:
            there = [each for other in others for each in other.values()]
        if norm > (bound := _bound(there, review)):
            what = (
                f"At {path} the expert changes the base by {norm:.3g} times its norm; from {bound:.3g} on, which the "
            )
            why = "pool's other experts are far from, an operator decides."
            return Refused(Code.NORM_UNUSUAL, what + why, "Wait for the pool's operator, or train it more gently.")
    return None


def doubt_gates(other: str, alike: float) -> Refused | None:
    """Say why a person must look at an expert that chooses as another's does.

    Args:
        other: Whose it is most like, for the sentence.
        alike: The correlation of what both choose.

    Returns:
        `NEAR_GATES`, or None.
    """
    if alike < NEAR_GATES:
        return None
    what = (
        f"It chooses what {other} chooses: their scores on the operator's material have a correlation of {alike:.2f}."
    )
    return Refused(Code.NEAR_GATES, what, "Wait for the pool's operator, or train gates on data of your own.")


def _bound(norms: Sequence[float], review: Review) -> float:
    logs = [math.log(norm) for norm in norms if norm > 0]
    if not logs:
        return math.inf
    middle = median(logs)
    spread = _NORMAL * median(abs(each - middle) for each in logs)
    return math.exp(min(middle + max(math.log(review.unusual_norm), review.deviations * spread), 700.0))
