"""One expert at one module, whatever its kind."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from protocol.adapters import Activation
from router.base.linear import Linear, bias_of


class Scales(NamedTuple):
    """What an expert does to the base's own product, in float32; None stands for zeros."""

    inner: Tensor | None = None
    """[d], c in the formula of `ExpertModule`."""
    outer: Tensor | None = None
    """[o], e."""
    shift: Tensor | None = None
    """[o], h."""


@dataclass(frozen=True, eq=False)
class ExpertModule:
    """One expert at one module, whatever its kind; all kinds are cases of one formula.

    It adds to y = W u + b

        delta(u) = s B f(A u) + W (c * u) + e * y + h

    with f the identity but for bottleneck adapters, and c, e, h zero but for (IA)3 and DoRA
    (`router.pool.conversion` says which is what). An expert without factors has rank 0.
    """

    a: Tensor
    """[r, d] in the model's dtype."""
    b: Tensor
    """[o, r] in the model's dtype."""
    scaling: float
    gate: Tensor
    """[d] float32, standardised."""
    activation: Activation | None = None
    """f; None is the identity."""
    scales: Scales | None = None
    """c, e and h."""
    a_t: Tensor = field(init=False)
    """[d, r], a view: making one costs as much as using it."""
    b_t: Tensor = field(init=False)
    """[r, o], a view."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "a_t", self.a.T)
        object.__setattr__(self, "b_t", self.b.T)

    @property
    def plain(self) -> bool:
        """Whether delta(u) is s B A u and nothing else."""
        return self.activation is None and self.scales is None

    def delta(self, u: Tensor, y: Tensor, linear: Linear) -> Tensor:
        """Compute what the expert adds to y [..., o], which the base's module makes of u [..., d]; differentiably."""
        hidden = activated(functional.linear(u, self.a), self.activation)
        added = functional.linear(hidden, self.b) * self.scaling
        inner, outer, shift = self.scales or Scales()
        if inner is not None:
            added = added + without_bias(linear, (u * inner).to(u.dtype))
        if outer is not None:
            added = added + y * outer
        if shift is not None:
            added = added + shift
        return added.to(y.dtype)


def activated(hidden: Tensor, activation: Activation | None) -> Tensor:
    """Apply an expert's f to A u, [..., r]; the identity costs nothing."""
    match activation:
        case "relu":
            return torch.relu(hidden)
        case "gelu":
            return functional.gelu(hidden)
    return hidden


def without_bias(linear: Linear, u: Tensor) -> Tensor:
    """Compute W u, [..., o], of u [..., d] and any linear module, whatever form its weight has."""
    y: Tensor = linear(u)
    bias = bias_of(linear)
    return y if bias is None else y - bias
