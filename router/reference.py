"""The slow, obvious answer that every fast path is tested against: float64, one token at a time.

Written from arXiv 2402.05859, section 3, and nothing else; shares no code with the routed layer.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-5


class ReferenceExpert(NamedTuple):
    """One expert at one module."""

    a: Tensor
    """[r, d]."""
    b: Tensor
    """[o, r]."""
    scaling: float
    gate: Tensor
    """[d], as trained."""


class Routed(NamedTuple):
    """What the reference did."""

    y: Tensor
    """[t, o] float64."""
    experts: list[list[int]]
    """Chosen experts of each token, best first."""
    weights: list[list[float]]
    gaps: list[float]
    """Distance between the last chosen and the first refused score, in units of the softmax."""


def standardised(x: Tensor) -> Tensor:
    """Standardise one vector [d] in float64."""
    x = x.double()
    centred = x - x.sum() / len(x)
    variance = (centred * centred).sum() / len(x)
    return centred / math.sqrt(variance + EPS)


def route(u: Tensor, weight: Tensor, bias: Tensor | None, experts: list[ReferenceExpert], k: int) -> Routed:
    """Route every token through its top-k experts.

    Args:
        u: [t, d].
        weight: [o, d].
        bias: [o] or None.
        experts: In pool order; ties go to the first.
        k: Experts a token.
    """
    outputs, chosen, weights, gaps = [], [], [], []
    for token in u.double():
        y = weight.double() @ token
        if bias is not None:
            y = y + bias.double()
        affinity = [float(standardised(expert.gate) @ standardised(token)) for expert in experts]
        order = sorted(range(len(experts)), key=lambda z: (-affinity[z], z))
        picked = order[:k]
        exponents = [math.exp((affinity[z] - affinity[order[0]]) / math.sqrt(len(token))) for z in picked]
        shares = [value / sum(exponents) for value in exponents]
        for z, share in zip(picked, shares, strict=True):
            expert = experts[z]
            y = y + share * expert.scaling * (expert.b.double() @ (expert.a.double() @ token))
        outputs.append(y)
        chosen.append(picked)
        weights.append(shares)
        cut = affinity[order[k - 1]] - affinity[order[k]] if len(order) > k else math.inf
        gaps.append(cut / math.sqrt(len(token)))
    return Routed(torch.stack(outputs), chosen, weights, gaps)
