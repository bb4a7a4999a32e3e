"""Modules that read the same input, and the experts there: one store, many generations of views."""

import math
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.pool.calibration import Calibration
from router.pool.device_table import GroupCalibration, Table, View
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule, Scales
from router.pool.pages import Column, FactorPage, FactorPages, GatePages, VectorPages
from router.pool.prototypes import Prototype

_PROTOTYPES = 4
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
            while len(self._derived) > _PROTOTYPES:
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


@dataclass(frozen=True, eq=False)
class RouteGroup:
    """One generation of a group: the rows that a request of that generation may see."""

    store: GroupStore
    length: int
    """Rows from the first on; rows that came later belong to later generations."""
    hidden: tuple[int, ...]
    """Rows below that to pass over: removed, or appended by another branch of the pool's history."""
    counts: tuple[int, ...]
    """Experts at each slot."""
    prototype: Prototype | None = None
    """What stands for an expert; None for its gate."""
    calibration: GroupCalibration | None = None
    """What a release adds to the scores of gates."""

    @classmethod
    def empty(cls, store: GroupStore) -> "RouteGroup":
        """See nothing of a store yet."""
        return cls(store, len(store.experts), tuple(range(len(store.experts))), (0,) * len(store.paths))

    def grown(self) -> "RouteGroup":
        """See the row that was appended last, too."""
        row = len(self.store.experts) - 1
        others = tuple(range(self.length, row))
        counts = tuple(n + (parts[row] is not None) for n, parts in zip(self.counts, self.store.parts, strict=True))
        return replace(self, length=row + 1, hidden=self.hidden + others, counts=counts)

    def without(self, digests: Collection[str]) -> "RouteGroup":
        """See some experts no more."""
        gone = [row for row in self.rows if self.store.experts[row].digest in digests]
        if not gone:
            return self
        left = zip(self.counts, self.store.parts, strict=True)
        counts = tuple(n - sum(parts[row] is not None for row in gone) for n, parts in left)
        return replace(self, hidden=(*self.hidden, *gone), counts=counts)

    def by(self, prototype: Prototype) -> "RouteGroup":
        """See the same experts, by other vectors than their gates; the last few kinds are kept."""
        found = self._by.get(prototype)
        if found is None:
            found = self._by[prototype] = replace(self, prototype=prototype, calibration=None)
            for former in list(self._by)[:-_PROTOTYPES]:
                self._by.pop(former, None)
        return found

    @cached_property
    def _by(self) -> dict[Prototype, "RouteGroup"]:
        return {}

    @property
    def rows(self) -> list[int]:
        """Rows of the experts that are seen."""
        hidden = set(self.hidden)
        return [row for row in range(self.length) if row not in hidden]

    @cached_property
    def gaps(self) -> bool:
        """Whether there are rows to pass over."""
        return bool(self.hidden) or any(self.store.absent)

    def absent(self, slot: int) -> list[int]:
        """Return the rows of experts that leave a slot's module alone."""
        rows = self.store.absent[slot]
        return rows if not rows or rows[-1] < self.length else rows[: bisect_left(rows, self.length)]

    @cached_property
    def blocks(self) -> tuple[Tensor, ...]:
        """Gates [n, d] as `router.pool.pages.GatePages.blocks` gives them."""
        return self._gates.blocks(self.length)

    @cached_property
    def halves(self) -> tuple[Tensor, ...]:
        """The same in half precision, [n, d] as `router.pool.pages.GatePages.halves` gives them."""
        return self._gates.halves(self.length)

    @property
    def _gates(self) -> GatePages:
        store, prototype = self.store, self.prototype
        return store.gates if prototype is None else store.derived(prototype, self.length)

    def vector(self, number: int) -> NDArray[np.float32]:
        """Look up the vector [d] to which a product of `blocks` belongs, on the host."""
        for block in self._host_blocks:
            if number < len(block):
                break
            number -= len(block)
        return block[number]

    @cached_property
    def _host_blocks(self) -> tuple[NDArray[np.float32], ...]:
        return tuple(block.numpy() for block in self.blocks)

    def calibrated(self, calibration: Calibration | None) -> "RouteGroup":
        """See the same experts, with biases and temperatures; None for none."""
        if calibration is None:
            return replace(self, calibration=None)
        digests = [expert.digest for expert in self.store.experts[: self.length]]
        found = GroupCalibration.of(calibration, digests, self.store.paths, self.store.gates.device)
        return replace(self, calibration=found)

    @cached_property
    def view(self) -> View:
        """What this generation sees of the table."""
        return self.store.table.view(self.length, self.hidden, self.calibration)

    @cached_property
    def hidden_index(self) -> Tensor | None:
        """[n], hidden rows as a tensor; None where nothing is hidden."""
        return torch.tensor(self.hidden, device=self.blocks[0].device) if self.hidden else None


@dataclass(frozen=True, eq=False)
class ModuleExperts:
    """The experts that touch one module, of one generation.

    Experts are known by their row, which grows in pool order; rows of experts that the generation does
    not see, or that leave the module alone, are passed over.
    """

    group: RouteGroup
    slot: int

    def __len__(self) -> int:
        """Number of experts."""
        return self.group.counts[self.slot]

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows in pool order."""
        parts = self.parts
        return tuple(row for row in self.group.rows if parts[row] is not None)

    def row(self, digest: str) -> int | None:
        """Find an expert by its bundle's digest."""
        return self._rows_by_digest.get(digest)

    @cached_property
    def _rows_by_digest(self) -> dict[str, int]:
        return {self.expert(row).digest: row for row in self.rows}

    @cached_property
    def plain(self) -> bool:
        """Whether every expert is plain factors, s B A u, and nothing else."""
        special = self.group.store.special[self.slot]
        return not special or special[0] >= self.group.length

    def vectors(self, name: str) -> VectorPages | None:
        """Return the pages of one field of `Scales`; None where no expert has it."""
        pages = self.group.store.vectors[self.slot].get(name)
        return pages if pages is not None and pages.since < self.group.length else None

    @property
    def whole(self) -> bool:
        """Whether every row, and so every place in the factor pages, is seen."""
        return not self.group.hidden

    @property
    def experts(self) -> tuple[Expert, ...]:
        """Experts in pool order."""
        return tuple(self.group.store.experts[row] for row in self.rows)

    @property
    def gates(self) -> Tensor:
        """[n, d] float32, standardised; a copy."""
        return torch.stack([self.part(row).gate for row in self.rows])

    @cached_property
    def parts(self) -> list[ExpertModule | None]:
        """Parts by row; the list is shared by all generations, so it may be longer than this one."""
        return self.group.store.parts[self.slot]

    def part(self, row: int) -> ExpertModule:
        """Return the part in a row.

        Raises:
            ValueError: The row holds none.
        """
        part = self.parts[row]
        if part is None:
            raise ValueError(f"row {row} has no expert for {self.group.store.paths[self.slot]}")
        return part

    def expert(self, row: int) -> Expert:
        """Return the expert in a row."""
        return self.group.store.experts[row]

    @cached_property
    def empty(self) -> Tensor | None:
        """[n], by row, whether an expert leaves the module alone; None where all touch it."""
        return self.keys < 0 if self.group.absent(self.slot) else None

    @cached_property
    def scalings(self) -> Tensor:
        """[n], by row, float32."""
        return self.group.store.scalings[self.slot].first(self.group.length)

    @cached_property
    def keys(self) -> Tensor:
        """[n], by row, int64, where each row's factors are in `pages`; -1 where an expert leaves the module alone."""
        return self.group.store.keys[self.slot].first(self.group.length)

    @property
    def pages(self) -> list[FactorPage]:
        """Factor pages, shared by all generations."""
        return self.group.store.pages_at(self.slot).pages

    @cached_property
    def filled(self) -> tuple[tuple[FactorPage, int], ...]:
        """Factor pages with the number of places in them that this generation knows; not those of rank 0."""
        keys, pages = self.keys.tolist(), [page for page in self.pages if page.a.shape[1]]
        held = [(page, sum(page.first <= key < page.first + len(page.a) for key in keys)) for page in pages]
        return tuple((page, places) for page, places in held if places)

    @cached_property
    def extent(self) -> Extent:
        """The shapes of all factors that this generation knows, some perhaps removed since."""
        return self.group.store.extents[self.slot][self.group.length - 1]
