"""The experts at one module: all that were ever added, in pages of their own."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from router.pool.expert_module import ExpertModule, Scales
from router.pool.pages import Column, FactorPage, FactorPages, VectorPages


class FactorShapes(NamedTuple):
    """What shapes the factors of a module's first rows have, all of them together."""

    rank: int = 0
    """The largest."""
    bare: bool = False
    """Whether some have rank 0."""
    step_bytes: int = 0
    """Bytes by which all rows of all factors are apart, as their greatest common divisor."""

    def with_part(self, part: ExpertModule) -> "FactorShapes":
        """Take one part more into account."""
        (r, d), o = part.a.shape, len(part.b)
        step_bytes = math.gcd(self.step_bytes, math.gcd(r, d, o) * part.a.itemsize)
        return FactorShapes(max(self.rank, r), self.bare or not r, step_bytes)


class ModuleStore:
    """All that was ever added at one module; only grows.

    One row an expert of the group, also of those that leave the module alone. As in `router.pool.group_store`, whoever
    reads knows how many rows to read.

    Args:
        path: The module.
        device: Where it computes.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        self.path = path
        self.parts: list[ExpertModule | None] = []
        """By row; None where an expert leaves the module alone."""
        self.absent: list[int] = []
        """Rows without a part."""
        self.special: list[int] = []
        """Rows whose part is more than plain factors."""
        self.shapes: list[FactorShapes] = []
        """By row, of that row and all before it: what a generation knows does not change as others grow."""
        self.factors: FactorPages | None = None
        """A and B; made when the first expert comes."""
        self.keys = Column(torch.int64, device)
        """Places of rows in `factors`; -1 where an expert leaves the module alone."""
        self.scalings = Column(torch.float32, device)
        self.vectors: dict[str, VectorPages] = {}
        """By name in `Scales`; made when the first expert has one."""

    @property
    def pages(self) -> list[FactorPage]:
        """Factor pages; they may hold more places than rows were written."""
        return self.factors.pages if self.factors else []

    def _factors_like(self, part: ExpertModule) -> FactorPages:
        if self.factors is None:
            self.factors = FactorPages(part.a.shape[1], len(part.b), part.a)
        return self.factors

    def reserve(self, part: ExpertModule | None) -> None:
        """Make room for one more row, with a part or without.

        Raises:
            ValueError: The part is of other widths than those that are here.
        """
        self.keys.reserve()
        self.scalings.reserve()
        scales = (part and part.scales) or Scales()
        for name, vector in scales._asdict().items():
            if vector is not None and name not in self.vectors:
                self.vectors[name] = VectorPages(len(vector), len(self.parts), vector.device)
            if name in self.vectors:
                self.vectors[name].reserve(vector)
        if part is not None:
            self._factors_like(part).reserve(part.a, part.b, part.activation)

    def append(self, part: ExpertModule | None, gate: Tensor) -> ExpertModule | None:
        """Copy the next row's part, where `reserve` made room for it.

        Args:
            part: None for an expert that leaves the module alone.
            gate: [d], where its gate is now.

        Returns:
            The part where it is now.
        """
        placed, key = None, -1
        scales = part.scales if part else None
        vectors = {name: pages.append(getattr(scales, name, None)) for name, pages in self.vectors.items()}
        if part is None:
            self.absent.append(len(self.parts))
        else:
            key, a, b = self._factors_like(part).append(part.a, part.b, part.activation)
            placed = ExpertModule(a, b, part.scaling, gate, part.activation, scales and Scales(**vectors))
            if not part.plain:
                self.special.append(len(self.parts))
        shapes = self.shapes[-1] if self.shapes else FactorShapes()
        self.shapes.append(shapes.with_part(placed) if placed else shapes)
        self.keys.append(key)
        self.scalings.append(placed.scaling if placed else 0.0)
        self.parts.append(placed)
        return placed
