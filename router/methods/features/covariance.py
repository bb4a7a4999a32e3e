"""Where vectors lie and how they spread, small enough to keep for wide modules.

The covariance is kept as its leading directions, and one variance for all others together (probabilistic principal
components: M. Tipping, C. Bishop, Journal of the Royal Statistical Society B 61, 1999): r d numbers where d^2 would
not fit. Up to a width of `DIRECTIONS` nothing is left out.
"""

from typing import NamedTuple

import torch
from torch import Tensor

DIRECTIONS = 256
"""Directions that are kept at most."""
_NOTHING = 1e-12
"""A variance this small against the largest is zero but for rounding."""


class Spread(NamedTuple):
    """A mean and a covariance S."""

    mean: Tensor
    """[d] float32."""
    basis: Tensor
    """[r, d] float32, orthonormal."""
    variances: Tensor
    """[r] float32, along the basis."""
    rest: Tensor
    """[1] float32, the variance along any other direction."""

    def raised(self, vectors: Tensor, ridge: float, power: float) -> Tensor:
        """Compute (S + ridge tr(S) / d I)^power v for vectors [n, d] and a ridge above 0.

        Returns:
            [n, d] float32; zeros where nothing varies.
        """
        d, r = len(self.mean), len(self.basis)
        added = ridge * float(self.variances.sum() + (d - r) * self.rest) / d
        if not added > 0:
            return torch.zeros_like(vectors, dtype=torch.float32)
        level = (float(self.rest) + added) ** power
        inner = (self.variances.double() + added) ** power - level
        basis, exact = self.basis.double(), vectors.double()
        return (exact * level + (exact @ basis.T * inner) @ basis).float()

    def deviation(self, vectors: Tensor) -> Tensor:
        """Compute the standard deviation sqrt(v' S v) of products with vectors [n, d]; returns [n] float64."""
        exact, basis = vectors.double(), self.basis.double()
        along = exact @ basis.T
        beside = (exact.square().sum(1) - along.square().sum(1)).clamp(min=0)
        return (along.square() @ self.variances.double() + beside * float(self.rest)).sqrt()


def spread_of(samples: Tensor) -> Spread:
    """Describe samples [n, d], n at least 2, in float64."""
    n, d = samples.shape
    mean = samples.double().mean(0)
    x = samples.double() - mean
    # Through the smaller of the two products.
    if d <= n:
        variances, columns = torch.linalg.eigh(x.T @ x / (n - 1))
        basis = columns.T
    else:
        variances, columns = torch.linalg.eigh(x @ x.T / (n - 1))
        basis = columns.T @ x / (variances.clamp(min=_NOTHING) * (n - 1)).sqrt().unsqueeze(1)
    kept = (variances > _NOTHING * variances[-1].clamp(min=_NOTHING)).nonzero().flatten().flip(0)[:DIRECTIONS]
    total = x.square().sum() / (n - 1)
    left = (total - variances[kept].sum()).clamp(min=0) / max(d - len(kept), 1)
    if len(kept) == d:
        left = torch.zeros_like(left)
    return Spread(mean.float(), basis[kept].float().contiguous(), variances[kept].float(), left.float().view(1))
