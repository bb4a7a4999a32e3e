"""Modules that read the same input, and the experts there: one store, many generations of views."""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch

from router.pool.device_table import Table
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule, Scales
from router.pool.pages import Column, FactorPages, GatePages, VectorPages
from router.pool.prototypes import Prototype

KEPT_PROTOTYPES = 4
"""Kinds of vectors beside the gates that are kept at once; a request may name one of its own."""


class Extent(NamedTuple):
    """What shapes the factors of a module's first rows have, all of them together."""

    rank: int = 0
    """The largest."""
    bare: bool = False
    """Whether some have rank 0."""
    step_bytes: int = 0
    """Bytes by which all rows of all factors are apart, as their greatest common divisor."""

    def with_part(self, part: ExpertModule) -> "Extent":
        """Take one part more into account."""
        (r, d), o = part.a.shape, len(part.b)
        step_bytes = math.gcd(self.step_bytes, math.gcd(r, d, o) * part.a.itemsize)
        return Extent(max(self.rank, r), self.bare or not r, step_bytes)


class GroupStore:
    """All that was ever added for a few modules that share an input; only grows.

    One row an expert, over all of the group's modules (slots). An expert that leaves a module alone has
    an empty place there. Whoever appends holds the pool's lock; whoever reads knows how many rows to read.

    Args:
        paths: The modules, one slot each.
        part: Any expert's part of one of them, for width and device.
    """

    def __init__(self, paths: Sequence[str], part: ExpertModule) -> None:
        device = part.gate.device
        self.paths = tuple(paths)
        self.experts: list[Expert] = []
        self.parts: tuple[list[ExpertModule | None], ...] = tuple([] for _ in paths)
        self.absent: tuple[list[int], ...] = tuple([] for _ in paths)
        """Rows without a part, by slot."""
        self.special: tuple[list[int], ...] = tuple([] for _ in paths)
        """Rows whose part is more than plain factors, by slot."""
        self.extents: tuple[list[Extent], ...] = tuple([] for _ in paths)
        """By slot and row, of that row and all before it: what a generation knows does not change as others grow."""
        self.gates = GatePages(len(paths), len(part.gate), device)
        self._derived: OrderedDict[Prototype, GatePages] = OrderedDict()
        self._deriving = threading.Lock()
        self.factors: list[FactorPages | None] = [None for _ in paths]
        self.keys = tuple(Column(torch.int64, device) for _ in paths)
        self.scalings = tuple(Column(torch.float32, device) for _ in paths)
        self.vectors: tuple[dict[str, VectorPages], ...] = tuple({} for _ in paths)
        """Vectors by slot and by name in `Scales`; made when the first expert has one."""

    @cached_property
    def table(self) -> Table:
        """Where everybody is, for a device that finds experts by itself."""
        return Table(self.parts)

    def derived(self, prototype: Prototype, rows: int) -> GatePages:
        """Return vectors of another kind than gates, of the first rows at least.

        Each expert's is worked out when it is first asked for, so a pool that grew by one costs one.
        """
        # Pages outlive the forward pass in which they might be made: they must not be inference tensors.
        with self._deriving, torch.inference_mode(mode=False), torch.no_grad():
            pages = self._derived.get(prototype) or GatePages(len(self.paths), self.gates.width, self.gates.device)
            for expert in self.experts[pages.rows : rows]:
                pages.append([prototype(expert, path) if path in expert.modules else None for path in self.paths])
            self._derived[prototype] = pages
            self._derived.move_to_end(prototype)
            while len(self._derived) > KEPT_PROTOTYPES:
                self._derived.popitem(last=False)
            return pages

    def pages_at(self, slot: int) -> FactorPages:
        """Return the factors of a slot.

        Raises:
            ValueError: No expert ever touched its module.
        """
        pages = self.factors[slot]
        if pages is None:
            raise ValueError(f"no expert touches {self.paths[slot]}")
        return pages

    def reserve(self, parts: Mapping[str, ExpertModule]) -> None:
        """Make room for one expert's parts.

        A failure, such as a device without memory, leaves every row as it was.

        Raises:
            ValueError: A part is of other widths than those that are here.
        """
        self.gates.reserve()
        for slot, path in enumerate(self.paths):
            part = parts.get(path)
            for column in (self.keys[slot], self.scalings[slot]):
                column.reserve()
            self._reserve_scales(slot, (part and part.scales) or Scales())
            if part is not None:
                pages = self.factors[slot] or FactorPages(part.a.shape[1], len(part.b), part.a)
                pages.reserve(part.a, part.b, part.activation)
                self.factors[slot] = pages

    def _reserve_scales(self, slot: int, scales: Scales) -> None:
        known = self.vectors[slot]
        for name, vector in scales._asdict().items():
            pages = known.get(name)
            if pages is None and vector is not None:
                pages = VectorPages(len(vector), len(self.experts), vector.device)
            if pages is not None:
                pages.reserve(vector)
                known[name] = pages

    def append(self, expert: Expert, parts: Mapping[str, ExpertModule]) -> dict[str, ExpertModule]:
        """Copy one expert's parts into the pages, where `reserve` made room for them.

        Returns:
            The parts where they are now.
        """
        row = len(self.experts)
        gates = self.gates.append([parts[path].gate if path in parts else None for path in self.paths])
        placed = {}
        for slot, path in enumerate(self.paths):
            part, key = parts.get(path), -1
            if part is None:
                self.absent[slot].append(row)
                self.parts[slot].append(None)
                self._append_scales(slot, None)
            else:
                key, a, b = self.pages_at(slot).append(part.a, part.b, part.activation)
                scales = self._append_scales(slot, part.scales)
                placed[path] = ExpertModule(a, b, part.scaling, gates[slot], part.activation, scales)
                self.parts[slot].append(placed[path])
                if not part.plain:
                    self.special[slot].append(row)
            extent = self.extents[slot][-1] if row else Extent()
            self.extents[slot].append(extent.with_part(part) if part else extent)
            self.keys[slot].append(key)
            self.scalings[slot].append(part.scaling if part else 0.0)
        # Last of all, since its length says how many rows are whole.
        self.experts.append(expert)
        return placed

    def _append_scales(self, slot: int, scales: Scales | None) -> Scales | None:
        placed = {name: pages.append(getattr(scales, name, None)) for name, pages in self.vectors[slot].items()}
        return None if scales is None else Scales(**placed)
