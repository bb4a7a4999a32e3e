"""The slow, obvious answer that every fast path is tested against: float64, one token at a time.

Written from arXiv 2402.05859, section 3, and nothing else; shares no code with the routed layer.
"""

import math
from collections.abc import Sequence
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
    kind: str = "lora"
    """Also `dora`, `ia3 output`, `ia3 input`, `relu` and `gelu` (the latter two: bottleneck adapters)."""
    vector: Tensor | None = None
    """DoRA's magnitudes [o], or (IA)3's l, [o] or [d]."""


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


def delta(expert: ReferenceExpert, u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute what an expert adds for one token, as its kind's paper puts it.

    Args:
        expert: Any kind.
        u: [d].
        weight: [o, d].
        bias: [o] or None.

    Returns:
        [o] float64.
    """
    a, b, w, u = expert.a.double(), expert.b.double(), weight.double(), u.double()
    bias = torch.zeros(len(w), dtype=torch.float64) if bias is None else bias.double()
    vector = torch.zeros(0) if expert.vector is None else expert.vector.double()
    match expert.kind:
        case "lora":
            return expert.scaling * (b @ (a @ u))
        case "dora":  # arXiv 2402.09353, equation 5: a magnitude times a direction of length 1, row by row
            directions = w + expert.scaling * (b @ a)
            rows = [m * row / math.sqrt(float(row @ row)) for m, row in zip(vector, directions, strict=True)]
            return torch.stack(rows) @ u - w @ u
        case "ia3 output":
            return vector * (w @ u + bias) - (w @ u + bias)
        case "ia3 input":
            return w @ (vector * u) - w @ u
        case "relu":
            return expert.scaling * (b @ torch.tensor([max(float(x), 0.0) for x in a @ u], dtype=torch.float64))
        case "gelu":
            bent = [float(x) * 0.5 * (1 + math.erf(float(x) / math.sqrt(2))) for x in a @ u]
            return expert.scaling * (b @ torch.tensor(bent, dtype=torch.float64))
    raise ValueError(expert.kind)


def route(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    experts: list[ReferenceExpert],
    k: int,
    *,
    biases: Sequence[float] = (),
    temperature: float = 1.0,
) -> Routed:
    """Route every token through its top-k experts.

    Args:
        u: [t, d].
        weight: [o, d].
        bias: [o] or None.
        experts: In pool order; ties go to the first.
        k: Experts a token.
        biases: Added to the scores, in units of the softmax; zeros where there are none.
        temperature: Divides scores and biases in the softmax.
    """
    outputs, chosen, weights, gaps = [], [], [], []
    for token in u.double():
        y = weight.double() @ token
        if bias is not None:
            y = y + bias.double()
        root = math.sqrt(len(token))
        affinity = [float(standardised(expert.gate) @ standardised(token)) / root for expert in experts]
        affinity = [score + added for score, added in zip(affinity, biases or [0.0] * len(experts), strict=True)]
        order = sorted(range(len(experts)), key=lambda z: (-affinity[z], z))
        picked = order[:k]
        exponents = [math.exp((affinity[z] - affinity[order[0]]) / temperature) for z in picked]
        shares = [value / sum(exponents) for value in exponents]
        for z, share in zip(picked, shares, strict=True):
            y = y + share * delta(experts[z], token, weight, bias)
        outputs.append(y)
        chosen.append(picked)
        weights.append(shares)
        cut = affinity[order[k - 1]] - affinity[order[k]] if len(order) > k else math.inf
        gaps.append(cut)
    return Routed(torch.stack(outputs), chosen, weights, gaps)
