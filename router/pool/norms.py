"""How much an expert changes the base at a module, whatever its kind and however its factors are written.

The figure is the largest singular value of what is added to W, over that of W: s B A written as (s B G) (G^-1 A) has
the same one, and no gate moves it. With sigma for the largest singular value:

    lora, rslora   sigma(s B A) / sigma(W)               from the QR factors of B and A^T, a matrix [r, r]
    dora           sigma(diag(g - 1) W + g s B A) / sigma(W)      the whole change, which is as large as W anyway
    ia3            max |l - 1|                           no smaller than sigma(diag(l - 1) W) / sigma(W)
    bottleneck     s sigma(U) sigma(D) / sigma(W)        |f(x)| <= |x|, so no input is changed by more
"""

import math

import torch
from torch import Tensor

from router.base.linear import Linear, weight_of
from router.pool.expert_module import ExpertModule, Scales

_VECTORS, _ROUNDS = 8, 8
"""Of the randomised subspace iteration: what it finds is a few per cent too small at most."""


def spectral_norm(matrix: Tensor) -> float:
    """Find the largest singular value of a large matrix [o, d], but for a few per cent; infinite where it overflows.

    By randomised subspace iteration (arXiv 0909.4061, algorithm 4.4). What a stranger wrote must not know where it
    starts, so the random numbers are those of the process.
    """
    largest = matrix.abs().max().item() if matrix.numel() else 0.0
    if not (largest > 0 and math.isfinite(largest)):
        return math.inf if largest else 0.0
    # Scaled, so that no square overflows.
    return largest * torch.svd_lowrank(matrix / largest, min(_VECTORS, *matrix.shape), _ROUNDS)[1][0].item()


def relative_norm(part: ExpertModule, linear: Linear, path: str, base: float) -> float:
    """Measure one expert at one module.

    Args:
        part: The expert there.
        linear: The base's module.
        path: For people.
        base: The largest singular value of its weight.

    Returns:
        0 for no change, 1 for one as large as the base's weight; infinite beyond what a float holds.

    Raises:
        Refused: `KIND_UNSUPPORTED` for DoRA over weights that cannot be read.
    """
    inner, outer, _ = part.scales or Scales()
    scales = max((vector.abs().max().item() for vector in (inner, outer) if vector is not None), default=0.0)
    if not len(part.a):
        return scales
    if outer is not None:
        whole = outer.unsqueeze(1) * weight_of(linear, path)
        whole.addmm_(part.b.float(), part.a.float(), alpha=part.scaling)
        return _over(spectral_norm(whole), base)
    a, b = (torch.linalg.qr(factor.double(), mode="r")[1] for factor in (part.a_t, part.b))
    if part.activation is not None:
        return _over(abs(part.scaling) * _largest(a) * _largest(b), base)
    return _over(abs(part.scaling) * _largest(b @ a.T), base)


def _largest(small: Tensor) -> float:
    """Find the largest singular value of a matrix [r, r]."""
    if not small.isfinite().all():
        return math.inf
    return torch.linalg.svdvals(small)[0].item()


def _over(change: float, base: float) -> float:
    return change / base if base else math.inf if change else 0.0
