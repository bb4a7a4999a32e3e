"""Vectors other than gates that stand for an expert at a module: worked out once an expert, when first asked for."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule

_NOTHING = 1e-14
"""A sum of updates this small against its terms is zero but for rounding."""


class Prototype(Hashable, Protocol):
    """A rule that gives each expert a vector; equal rules share their vectors."""

    def __call__(self, expert: Expert, path: str) -> Tensor | None:
        """Return the vector [d] of an expert at one of its modules; None stands for zeros."""


@dataclass(frozen=True)
class Direction:
    """The first right singular vector of an expert's update, less the mean update of some others.

    Without others, Arrow's; with them, GenKnowSub's.
    """

    others: tuple[Expert, ...] = ()
    """Experts whose mean update is taken off."""

    def __call__(self, expert: Expert, path: str) -> Tensor | None:
        """Return the direction [d], of either sign; zeros where the update is zero or no matrix of low rank."""
        if not expert.modules[path].plain:
            return None
        terms = [(expert.modules[path], 1.0)]
        terms += [(other.modules[path], -1 / len(self.others)) for other in self.others if path in other.modules]
        return first_direction(terms)


def first_direction(terms: list[tuple[ExpertModule, float]]) -> Tensor:
    """Find the direction that a weighted sum of updates stretches most, without ever forming it.

    With A stacked and w s B side by side, the sum is B A = Qb (Rb Ra') Qa': its singular vectors are those of a
    matrix as small as the ranks together, turned back.

    Args:
        terms: Parts of one module, each with its weight w.

    Returns:
        [d] float32 of length 1, computed in float64; zeros if the sum is zero.
    """
    a = torch.cat([part.a.double() for part, _ in terms])
    b = torch.cat([part.b.double() * (part.scaling * weight) for part, weight in terms], dim=1)
    qa, ra = torch.linalg.qr(a.T)
    _, rb = torch.linalg.qr(b)
    _, lengths, directions = torch.linalg.svd(rb @ ra.T)
    if not lengths[0] > _NOTHING * torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(b):
        return torch.zeros_like(a[0], dtype=torch.float32)
    return (qa @ directions[0]).float()
