"""Which experts for one token alone, decided on the host.

NumPy and Python's floats go on from the product: each of torch's operations costs more than it computes for one token.

Among some hundred experts, most of the time goes into reading their gates. Where it pays, a copy in half precision
tells who may be among the best, and only they are scored in float32. Nobody is left out by mistake: a standardised
gate v is at most sqrt(d) long, so with w = v / sqrt(d), and with w', u' for w and u rounded to halves,

    |w.u - w'.u'| <= |w - w'| |u| + |w'| |u - u'| + rounding of the sum

where a number moves by 2^-11 of itself at most, or by 2^-25 if it is below 2^-14, and where adding up d products in
float32, as torch does for halves on a CPU, costs d 2^-24 of |w'| |u'| at most.
"""

import math
from bisect import insort
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from router.layer.autotune import autotuner
from router.layer.choice import CommonChoice
from router.pool.gate import EPS
from router.pool.group_view import RouteGroup

TRUSTED = 4.0
"""Largest mean^2 / sigma^2 at which sigma^2 is taken as E[u^2] - mean^2: float32 then keeps 1e-6 of it."""
_MANY = 1 << 18
"""Numbers in gates; where there are fewer, there is nothing to save."""
_FEW = 8
"""Most experts a token among whom to look twice."""
_SPARE = 8
"""Experts beyond those taken that are scored twice; where more are nearly equal, all are scored in float32."""
_SHORTEST, _LONGEST = 2.0**-6, 2.0**15
"""Lengths of u between which halves hold it, and its products."""

Decision = list[CommonChoice | None]
Floats = NDArray[np.float32]


def choose_for_one(group: RouteGroup, u: Tensor, k: int, temperature: float) -> Decision | None:
    """Choose the k best experts for u [..., d], one token, at every module of a group.

    Returns:
        As `router.layer.topk.choose_topk`; None where the token's mean is large, or a figure is not finite.
    """
    u = _vector(u)
    d, size = len(u), group.length * len(group.counts)
    if k > _FEW or size * d < _MANY:
        return _by_all(group, u, k, temperature)
    kind = ("one token", d, size.bit_length(), k)
    name = autotuner.known.get(kind)
    if name is None:
        calls = {name: partial(way, group, u, k, temperature) for name, way in _WAYS.items()}
        name = autotuner.settle(kind, calls, u, cold=True)
    return _WAYS[name](group, u, k, temperature)


def _by_all(group: RouteGroup, u: Tensor, k: int, temperature: float) -> Decision | None:
    """Score everybody in float32 for u [d]."""
    d, slots, calibration = len(u), len(group.counts), group.calibration
    scores, numbers = products_of_one(group, u)
    scale = _scale(d, scores.item(0), float(numbers.dot(numbers)))
    if scale is None:
        return None
    if calibration is not None:
        scores[slots : slots + len(calibration.flat)] += calibration.flat * scale
    return topk_of_one(group, scores, k, _units(group, scale, temperature))


def _by_likely(group: RouteGroup, u: Tensor, k: int, temperature: float) -> Decision | None:
    """Score everybody in half precision for u [d], then in float32 whoever may be among the best."""
    d, slots, numbers = len(u), len(group.counts), u.numpy()
    squares = float(numbers.dot(numbers))
    length, root = math.sqrt(squares), math.sqrt(d)
    if not _SHORTEST <= length <= _LONGEST:
        return _by_all(group, u, k, temperature)
    scale = _scale(d, float(group.vector(0).dot(numbers)), squares)
    if scale is None:
        return None
    half = u.half()
    products = [functional.linear(half, block) for block in group.halves]
    scores = (products[0] if len(products) == 1 else torch.cat(products)).float().numpy()
    biases: Floats | tuple[()] = ()
    if group.calibration is not None:
        biases = group.calibration.flat * (scale / root)
        scores[slots : slots + len(biases)] += biases
    off = _error_of_halves(d, length)

    def exact(at: int) -> float:
        score = float(group.vector(slots + at).dot(numbers)) / root
        return score + float(biases[at]) if at < len(biases) else score

    found: Decision = []
    for slot, unit in enumerate(_units(group, scale / root, temperature)):
        most, places = min(k, group.counts[slot]), range(slot, len(scores) - slots, slots)
        likely = _likely(_seen(group, scores, slot), most, off, places, exact)
        if likely is None:
            return _by_all(group, u, k, temperature)
        found.append(_weighed(likely[:most], unit))
    return found


_TIED = 5e-7
"""Of a score, by how much equal vectors' products may be apart: some BLAS add up rows in an order of their own."""
_WAYS = {"all": _by_all, "likely": _by_likely}


def _error_of_halves(d: int, length: float) -> float:
    """Bound what w . u of halves and of float32 are apart, for u of a length among d features, as said above.

    Three numbers are rounded to halves: those of w and u, and the sum. Two sums are float32: this and the exact one.
    A hundredth more covers products of these errors, and biases.
    """
    small = math.sqrt(d) * 2**-25 / _SHORTEST
    return 1.01 * length * (3 * (2**-11 + small) + 2 * d * 2**-24)


def _likely(
    scores: Floats, most: int, off: float, places: Sequence[int], exact: Callable[[int], float]
) -> list[tuple[float, int]] | None:
    """Find the `most` best of scores [n], by row, each wrong by `off` at most; they are written over.

    `exact` scores anew whoever stands at a place, which `places` tells by row.

    Returns:
        Minus the exact score, and row; the best first, then more rows. None if so many might be among the best that
        looking at each again is not worth it.
    """
    found: list[tuple[float, int]] = []
    while most:
        row = int(scores.argmax())
        if len(found) >= most and scores.item(row) + off < -found[most - 1][0]:
            break
        if len(found) == most + _SPARE:
            return None
        insort(found, (-exact(places[row]), row))
        scores[row] = -math.inf
    return found


def _scale(d: int, mean: float, squares: float) -> float | None:
    """Return sqrt(d) sigma from a token's mean and |u|^2; None where the mean is large, or a figure is not finite."""
    variance = max(squares / d - mean * mean, 0.0) + EPS
    return math.sqrt(d * variance) if mean * mean <= TRUSTED * variance else None


def _units(group: RouteGroup, scale: float, temperature: float) -> list[float]:
    """Return what scores are multiplied with before the softmax, by slot."""
    unit = 1 / (scale * temperature)
    if group.calibration is None:
        return [unit] * len(group.counts)
    return [unit / own for own in group.calibration.temperatures]


def _vector(u: Tensor) -> Tensor:
    """View or copy u [..., d], one token, as [d] float32 without a gradient."""
    u = u.detach() if u.requires_grad else u
    return u.reshape(-1) if u.dtype == torch.float32 else u.reshape(-1).float()


def products_of_one(group: RouteGroup, u: Tensor) -> tuple[Floats, Floats]:
    """Multiply one token's u [..., d] with every vector of a group, on the host.

    Returns:
        As `router.layer.topk.products`, [n] float32, and u itself, [d] float32.
    """
    u = _vector(u)
    blocks = group.blocks
    scores = torch.mv(blocks[0], u) if len(blocks) == 1 else torch.cat([torch.mv(block, u) for block in blocks])
    return scores.numpy(), u.numpy()


def topk_of_one(group: RouteGroup, scores: Floats, k: int, units: Sequence[float]) -> Decision:
    """Choose one token's experts at every module of a group; ties go to the expert that came first.

    Args:
        group: The modules and their experts.
        scores: [n] as `products_of_one` lays them out; written over.
        k: Experts at most.
        units: What scores are multiplied with before the softmax, by slot.
    """
    found: Decision = []
    for slot, count in enumerate(group.counts):
        mine = _seen(group, scores, slot)
        best: list[tuple[float, int]] = []
        for _ in range(min(k, count)):
            top = mine.max()
            row = int((mine >= top - abs(top) * _TIED).argmax())  # the first of equals
            best.append((-mine.item(row), row))
            mine[row] = -math.inf
        found.append(_weighed(best, units[slot]))
    return found


def _seen(group: RouteGroup, scores: Floats, slot: int) -> Floats:
    """View one slot's scores, by row, of scores [n] as `products_of_one` lays them out; nobody hidden is best."""
    slots = len(group.counts)
    mine = scores[slots + slot :: slots]
    unseen = group.unseen[slot]
    if unseen is not None:
        mine[unseen.numpy()] = -math.inf
    return mine


def _weighed(best: list[tuple[float, int]], unit: float) -> CommonChoice | None:
    """Weigh the best, given as minus the score and the row; None for nobody."""
    if not best:
        return None
    weights = [math.exp((best[0][0] - score) * unit) for score, _ in best]
    total = sum(weights)
    return CommonChoice([row for _, row in best], [weight / total for weight in weights])
