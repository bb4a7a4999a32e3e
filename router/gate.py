"""The maths of a gate: trained as a sigmoid, used as a routing vector.

Source: arXiv 2402.05859, section 3; trap by trap in the tests. With u an activation that enters a
linear module, W its weight, delta what an expert adds there (`router.part`) and v its gate:

    training    y = W u + delta(u) * sigmoid(v . u)       v = 0 at the start, all else frozen
    routing     a_z = standardise(v_z) . standardise(u)   E = the k largest
                y = W u + sum over z in E of w_z delta_z(u),  w = softmax(a_z / sqrt(d))
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-5
"""Added to the variance: that of torch's LayerNorm, which the paper's code standardises with."""


def standardise(x: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation over features.

    Args:
        x: [..., d].

    Returns:
        [..., d] with mean 0 and biased variance 1 (up to `EPS`); a constant vector becomes 0.
    """
    return functional.layer_norm(x, x.shape[-1:], eps=EPS)


class Choice(NamedTuple):
    """Which experts each token is given."""

    experts: Tensor
    """[t, k] rows among the experts of a module, highest score first."""
    weights: Tensor
    """[t, k] float32; each row sums to 1 where a softmax made it."""
    hidden: Tensor | None = None
    """[t, k, r] float32, w s A u, where a GPU computed it by the way."""


class CommonChoice(NamedTuple):
    """The experts that all tokens are given alike; also those of a token that comes alone."""

    experts: list[int]
    """k rows among the experts of a module, highest score first."""
    weights: list[float]
    """k; they sum to 1 unless the method wants it otherwise."""


def scores(u: Tensor, gates: Tensor) -> Tensor:
    """Affinity of tokens and experts, always in float32.

    bfloat16 scores change the chosen pair for 0.5 to 2.8 % of tokens, so the activation is widened
    first, whatever the model computes in.

    Args:
        u: [t, d] activations that enter the module.
        gates: [n, d] float32, standardised.

    Returns:
        [t, n] dot products of standardised vectors.
    """
    return standardise(u.float()) @ gates.T


def choose(affinity: Tensor, k: int, d: int) -> Choice:
    """Take the k best experts and weigh them.

    Args:
        affinity: [t, n].
        k: Experts a token; all of them where there are fewer.
        d: Width of the module's input, for the softmax's temperature sqrt(d).

    Returns:
        Experts and weights, [t, min(k, n)]; ties go to the expert with the lowest position.
    """
    # A stable sort, since topk leaves the order of equal scores open.
    best, experts = torch.sort(affinity, dim=-1, descending=True, stable=True)
    kept = min(k, affinity.shape[-1])
    return Choice(experts[:, :kept], torch.softmax(best[:, :kept] / math.sqrt(d), dim=-1))
