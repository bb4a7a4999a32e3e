"""NNLS by request: a request is solved for the experts it is a mixture of, and these answer all of it.

Source: this project's laboratory (`tests/lab`); the decomposition is `router.methods.features.mixture`. Weights are
    fixed for all tokens and modules of a request, the answer's among them, before its first routed token: so what is
    cached of a prompt and what is decoded after it agree. Two rules turn shares c into weights:

    nnls-request      mass = 1 + clip((q - .65) / .2, 0, 1), q the share of the two largest c in their sum;
                      kept are the k largest above a quarter of the largest; w = min(1, mass c / sum of kept c)
    nnls-fixed:MASS   the k largest; w = min(1, MASS c / sum of kept c)

A request that is plainly one or two skills gets each whole, where a softmax would halve them. One that no expert has
half of is unfamiliar: 2 k (up to 4) answer it by the second rule, at a mass of 1.5, since what experts have in common
adds up where what sets them apart averages out. Experts that cannot be told apart count as one in both rules, and share
its weight. Where no share is above zero nobody answers but the base.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.errors import Code, Refused
from router.layer.batch_rows import BatchRows
from router.layer.choice import Choice, CommonChoice
from router.layer.routed_linear import RoutingPlan
from router.methods.base_only import BaseOnly
from router.methods.context import MethodContext
from router.methods.features.mixture import Shares, familiar
from router.methods.features.nnls import Floats
from router.pool.group_view import ModuleExperts

_KEPT = 0.25
"""Of the largest share: smaller ones are noise."""
_MOST = 8.0
"""Largest MASS."""
_SPREAD, _WIDTH = 0.65, 0.2
"""Share of the two largest up to which the mass is 1, and how much more of it makes it 2."""
_UNFAMILIAR_MASS = 1.5
_ENOUGH = 4
"""Experts for an unfamiliar request; more blur what it consists of."""


def by_request(asked: MethodContext, mass: float | None = None) -> list[RoutingPlan]:
    """Plan each input by the experts it is a mixture of, at a total weight (mass) that is given, or found for each.

    Raises:
        Refused: `STATISTICS_MISSING`.
    """
    return by_weights(asked, MethodContext.shares, lambda c, alike: request_weights(c, alike, asked.k, mass))


def by_weights(
    asked: MethodContext,
    solve: Callable[[MethodContext], Shares],
    weigh: Callable[[Floats, NDArray[np.int64]], Floats],
) -> list[RoutingPlan]:
    """Plan each input by shares [n] and who is alike [n], as a rule turns them into weights [n]."""
    alone, experts = RoutingPlan(asked.pool, BaseOnly()), asked.pool.experts
    if not experts:
        return [alone] * len(asked.inputs)
    shares = solve(asked)
    kept: list[dict[str, float]] = []
    for c in shares.shares:
        weights = weigh(c, shares.alike)
        order = sorted(np.flatnonzero(weights > 0).tolist(), key=lambda z: -weights[z])
        kept.append({experts[z].digest: float(weights[z]) for z in order})
    # Whom nobody answers the base does, bit for bit, so these are not of one plan with others.
    routed = RoutingPlan(asked.pool, ByRequest([weights for weights in kept if weights]))
    return [routed if weights else alone for weights in kept]


def read_mass(argument: str) -> float:
    """Read the MASS of nnls-fixed.

    Raises:
        Refused: `METHOD_UNKNOWN`.
    """
    with suppress(ValueError):
        if 0 < (mass := float(argument)) <= _MOST:
            return mass
    raise Refused(
        Code.METHOD_UNKNOWN,
        f"nnls-fixed:{argument:.20} names no total weight; expected a number above 0, up to {_MOST:g}.",
        "Ask for nnls-fixed:1.5, or for nnls-request, which finds it.",
    )


def wider(k: int) -> int:
    """Tell how many experts answer an unfamiliar request: twice k, as far as 4, but k at least."""
    return max(k, min(2 * k, _ENOUGH))


def found_mass(c: Floats, alike: NDArray[np.int64]) -> float:
    """Find a request's total weight, 1 to 2, from shares c [n] and who is alike [n]."""
    if not familiar(c, alike):
        return _UNFAMILIAR_MASS
    together = np.sort(np.bincount(alike, weights=c))[::-1]
    return 1 + float(np.clip((together[:2].sum() / together.sum() - _SPREAD) / _WIDTH, 0, 1))


def request_weights(c: Floats, alike: NDArray[np.int64], k: int, mass: float | None) -> Floats:
    """Turn shares into weights.

    Args:
        c: [n], 0 or more.
        alike: [n], equal numbers for experts that count as one.
        k: Experts at most; of an unfamiliar request `wider` gives them.
        mass: Total weight of k experts; without it, both are found.

    Returns:
        [n]; the weights of experts that are alike sum to 1 at most.
    """
    wide = mass is None and not familiar(c, alike)
    together = np.bincount(alike, weights=c)[alike]
    # A familiar request keeps nobody who is small; of equals the first.
    least = _KEPT * together.max() if mass is None and not wide else 0
    order = np.argsort(-c, kind="stable")
    best = [z for z in order if c[z] > 0 and together[z] > least][: wider(k) if wide else k]
    kept = np.zeros_like(c)
    kept[best] = c[best]
    if not best:
        return kept
    weights = (found_mass(c, alike) if mass is None else mass) * kept / kept.sum()
    together = np.bincount(alike, weights=weights)[alike]
    return weights / np.maximum(together, 1)


class ByRequest:
    """The same experts at the same weights for all tokens of a request, at every module that they touch.

    Args:
        kept: Weights by bundle digest, largest first, one a row of the batch.
    """

    def __init__(self, kept: Sequence[dict[str, float]]) -> None:
        self._kept = kept
        self._rows = BatchRows(len(kept))
        self._tables: dict[ModuleExperts, Choice | CommonChoice | None] = {}

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice | CommonChoice | None:
        """Look up who serves each row of u, shaped as `BatchRows.entries` takes it, [..., d]."""
        if module not in self._tables:
            self._tables[module] = self._table(module, u.device)
        table = self._tables[module]
        if not isinstance(table, Choice):
            return table
        self._rows.entries(module.path, u)
        tokens = u.shape[:-1].numel() // len(self._kept)
        if tokens == 1:
            return table
        return Choice(table.experts.repeat_interleave(tokens, 0), table.weights.repeat_interleave(tokens, 0))

    def _table(self, module: ModuleExperts, device: torch.device) -> Choice | CommonChoice | None:
        found = []
        for kept in self._kept:
            rows = [(module.by_digest.get(digest), weight) for digest, weight in kept.items()]
            found.append([(row, weight) for row, weight in rows if row is not None])
        k = max(map(len, found))
        if not k:
            return None
        if len(found) == 1:
            return CommonChoice([row for row, _ in found[0]], [weight for _, weight in found[0]])
        # Rows with fewer experts are filled up with one at weight 0.
        idle = (module.rows[0], 0.0)
        filled = [rows + [(rows[0][0], 0.0) if rows else idle] * (k - len(rows)) for rows in found]
        return Choice(
            torch.tensor([[row for row, _ in rows] for rows in filled], device=device),
            torch.tensor([[weight for _, weight in rows] for rows in filled], dtype=torch.float32, device=device),
        )
