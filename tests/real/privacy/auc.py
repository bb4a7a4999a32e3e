"""How well scores tell one group from another: the area under the ROC curve, with an interval."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_DRAWS = 1000


class Two(NamedTuple):
    """Scores of two groups."""

    own: Floats
    others: Floats


class Area(NamedTuple):
    """Chance that one of its own is above another one; .5 is a guess."""

    mean: float
    low: float
    high: float


def area(pairs: Sequence[Two]) -> Area | None:
    """Average the areas of several attacks of one kind; the interval is where redrawn groups have it 95 times in 100.

    Attacks of which a group is empty are left out.

    Returns:
        None where nothing is left.
    """
    rng = np.random.default_rng(0)
    means, drawn = [], []
    for own, others in pairs:
        if not len(own) or not len(others):
            continue
        above = (own[:, None] > others) + 0.5 * (own[:, None] == others)
        means.append(above.mean())
        counts = [rng.multinomial(n, np.full(n, 1 / n), size=_DRAWS) / n for n in above.shape]
        drawn.append(((counts[0] @ above) * counts[1]).sum(1))
    if not means:
        return None
    low, high = np.quantile(np.mean(drawn, axis=0), (0.025, 0.975))
    return Area(float(np.mean(means)), float(low), float(high))


def by_kind(scores: Mapping[str, Floats], kinds: Mapping[str, str]) -> dict[str, Floats]:
    """Join what modules say of the same things, [n] by path, in units of its spread: by kind of module, and all.

    Args:
        scores: By path.
        kinds: By path.
    """
    found: dict[str, list[Floats]] = {}
    for path, each in scores.items():
        spread = each.std()
        unit = (each - each.mean()) / (spread if spread > 0 else 1)
        for kind in (kinds[path], ALL):
            found.setdefault(kind, []).append(unit)
    return {kind: np.mean(units, axis=0) for kind, units in found.items()}


ALL = "all"
