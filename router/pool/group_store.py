"""Modules that read the same input, and the experts there: one store, many generations of views."""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from router.pool.device_table import DeviceTable
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule, Scales
from router.pool.pages import Column, FactorPages, GatePages, VectorPages
from router.pool.prototypes import Prototype

KEPT_PROTOTYPES = 4
"""Kinds of vectors beside the gates that are kept at once; a request may name one of its own."""


class FactorShapes(NamedTuple):
    """What shapes the factors of a module's first rows have together."""

    rank: int = 0
    """The largest."""
    bare: bool = False
    """Whether some have rank 0."""
    step_bytes: int = 0
    """Bytes by which all rows of all factors are apart, as their greatest common divisor."""


class ModuleStore:
    """All that was ever added at one module; as `GroupStore`, a row for each expert of the group.

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
            self.factors = self.factors or FactorPages(part.a.shape[1], len(part.b), part.a)
            self.factors.reserve(part.a, part.b, part.activation)

    def append(self, part: ExpertModule | None, gate: Tensor) -> ExpertModule | None:
        """Copy the next row's part, whose gate [d] is in its place, where `reserve` made room for it.

        Returns:
            The part where it is now; None for an expert that leaves the module alone.
        """
        placed, key, row = None, -1, len(self.parts)
        shapes = self.shapes[-1] if row else FactorShapes()
        scales = part.scales if part else None
        vectors = {name: pages.append(getattr(scales, name, None)) for name, pages in self.vectors.items()}
        if part is None or self.factors is None:
            self.absent.append(row)
        else:
            key, a, b = self.factors.append(part.a, part.b, part.activation)
            placed = ExpertModule(a, b, part.scaling, gate, part.activation, scales and Scales(**vectors))
            step_bytes = math.gcd(shapes.step_bytes, math.gcd(*a.shape, len(b)) * a.itemsize)
            shapes = FactorShapes(max(shapes.rank, len(a)), shapes.bare or not len(a), step_bytes)
            if not part.plain:
                self.special.append(row)
        self.shapes.append(shapes)
        self.keys.append(key)
        self.scalings.append(placed.scaling if placed else 0.0)
        self.parts.append(placed)
        return placed


class GroupStore:
    """All that was ever added for a few modules that share an input; only grows.

    One row an expert, over all of the group's modules (slots). Whoever appends holds the pool's lock; whoever reads
    knows how many rows to read.

    Args:
        paths: The modules.
        part: Any expert's part of one of them, for width and device.
    """

    def __init__(self, paths: Sequence[str], part: ExpertModule) -> None:
        self.paths = tuple(paths)
        self.experts: list[Expert] = []
        self.modules = tuple(ModuleStore(path, part.gate.device) for path in paths)
        """By slot."""
        self.gates = GatePages(len(paths), len(part.gate), part.gate.device)
        self._derived: OrderedDict[Prototype, GatePages] = OrderedDict()
        self._deriving = threading.Lock()

    @cached_property
    def table(self) -> DeviceTable:
        """Where everybody is, for a device that finds experts by itself."""
        return DeviceTable([module.parts for module in self.modules])

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

    def reserve(self, parts: Mapping[str, ExpertModule]) -> None:
        """Make room for one expert's parts.

        A failure, such as a device without memory, leaves every row as it was.

        Raises:
            ValueError: A part is of other widths than those that are here.
        """
        self.gates.reserve()
        for module in self.modules:
            module.reserve(parts.get(module.path))

    def append(self, expert: Expert, parts: Mapping[str, ExpertModule]) -> dict[str, ExpertModule]:
        """Copy one expert's parts into the pages, where `reserve` made room for them.

        Returns:
            The parts where they are now.
        """
        gates = self.gates.append([parts[path].gate if path in parts else None for path in self.paths])
        placed = {}
        for module, gate in zip(self.modules, gates, strict=True):
            part = module.append(parts.get(module.path), gate)
            if part is not None:
                placed[module.path] = part
        # Last of all, since its length says how many rows are whole.
        self.experts.append(expert)
        return placed
