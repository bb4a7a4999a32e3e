"""NNLS, cautiously: an expert does as much as it is sure to be asked, and strangers to a request do next to nothing.

Source: this project's bench on a pre-trained base (`tests/real`). With c the shares of what the request ends in
    (`router.methods.features.mixture.Mixtures.latest`), t_z the sum of c over those that cannot be told apart from z, 1
    at most, the k largest answer, of an unfamiliar request 2 k (up to 4), with

    w_z = t_z^1.5  c_z / sum of c over those alike

Nothing is scaled up to a whole: `nnls-request` gives an unfamiliar request experts of weight 1.5 together, which costs
more than it brings on real text. An expert there makes the base sure of answers of its own kind, and a stranger's
certainty is worse than the base's doubt; at a tenth of its weight it still helps.
"""

import numpy as np
from numpy.typing import NDArray

from router.layer.routed_linear import RoutingPlan
from router.methods.context import MethodContext
from router.methods.features.mixture import familiar
from router.methods.features.nnls import Floats
from router.methods.nnls_request import by_weights, wider

_POWER = 1.5
_LEAST = 1e-3
"""Weights below this change nothing."""


def cautiously(asked: MethodContext) -> list[RoutingPlan]:
    """Plan each input by the experts that what it ends in is a mixture of, each at a weight of its own.

    Raises:
        Refused: `STATISTICS_MISSING`.
    """
    return by_weights(asked, MethodContext.latest_shares, lambda c, alike: cautious_weights(c, alike, asked.k))


def cautious_weights(c: Floats, alike: NDArray[np.int64], k: int) -> Floats:
    """Turn shares into weights.

    Args:
        c: [n], 0 or more.
        alike: [n], equal numbers for experts that count as one.
        k: Experts at most; of an unfamiliar request `wider` gives them.

    Returns:
        [n]; the weights of experts that are alike sum to 1 at most.
    """
    together = np.bincount(alike, weights=c)[alike]
    part = np.divide(c, together, out=np.zeros_like(c), where=together > 0)
    weights = np.minimum(together, 1) ** _POWER * part
    order = np.argsort(-weights, kind="stable")
    weights[order[k if familiar(c, alike) else wider(k) :]] = 0
    return np.where(weights > _LEAST, weights, 0)
