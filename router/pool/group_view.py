"""Modules that read the same input, and the experts of each, as one release sees them."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.pool.calibration import Calibration
from router.pool.device_table import DeviceView, GroupCalibration
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.group_store import KEPT_PROTOTYPES, FactorShapes, GroupStore, ModuleStore
from router.pool.pages import FactorPage, GatePages, VectorPages
from router.pool.prototypes import Prototype


@dataclass(frozen=True, eq=False)
class RouteGroup:
    """One generation of a group: the rows that a request of that generation may see."""

    store: GroupStore
    counts: tuple[int, ...]
    """Experts at each slot."""
    length: int = 0
    """Rows from the first on; rows that came later belong to later generations."""
    hidden: tuple[int, ...] = ()
    """Rows below that to pass over: removed, or appended by another branch of the pool's history."""
    prototype: Prototype | None = None
    """What stands for an expert; None for its gate."""
    calibration: GroupCalibration | None = None
    """What a release adds to the scores of gates."""

    def grown(self) -> "RouteGroup":
        """See the row that was appended last, too."""
        row = len(self.store.experts) - 1
        hidden = (*self.hidden, *range(self.length, row))
        return replace(self, length=row + 1, hidden=hidden, counts=self._counts_with(+1, row))

    def without(self, digests: Collection[str]) -> "RouteGroup":
        """See some experts no more."""
        gone = [row for row in self.rows if self.store.experts[row].digest in digests]
        if not gone:
            return self
        return replace(self, hidden=(*self.hidden, *gone), counts=self._counts_with(-1, *gone))

    def _counts_with(self, sign: int, *rows: int) -> tuple[int, ...]:
        return tuple(
            count + sign * sum(module.parts[row] is not None for row in rows)
            for count, module in zip(self.counts, self.store.modules, strict=True)
        )

    def by(self, prototype: Prototype) -> "RouteGroup":
        """See the same experts, by other vectors than their gates; the last few kinds are kept."""
        found = self._by.get(prototype)
        if found is None:
            found = self._by[prototype] = replace(self, prototype=prototype, calibration=None)
            for former in list(self._by)[:-KEPT_PROTOTYPES]:
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
    def unseen(self) -> tuple[Tensor | None, ...]:
        """[n] by slot, rows to pass over: hidden ones, and experts that leave the module alone; None for no row."""
        rows = ([*self.hidden, *(row for row in module.absent if row < self.length)] for module in self.store.modules)
        return tuple(torch.tensor(each, device=self.store.gates.device) if each else None for each in rows)

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
        return self.store.gates if self.prototype is None else self.store.derived(self.prototype, self.length)

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
        store, digests = self.store, [expert.digest for expert in self.store.experts[: self.length]]
        found = GroupCalibration.of(calibration, digests, store.paths, store.gates.device)
        return replace(self, calibration=found)

    @cached_property
    def view(self) -> DeviceView:
        """What this generation sees of the table."""
        return self.store.table.view(self.length, self.hidden, self.calibration)


@dataclass(frozen=True, eq=False)
class ModuleExperts:
    """The experts that touch one module, of one generation.

    Experts are known by their row, which grows in pool order; rows of experts that the generation does
    not see, or that leave the module alone, are passed over.
    """

    group: RouteGroup
    """The modules that read the same input, this one among them."""
    slot: int
    """Its place among them."""

    @cached_property
    def store(self) -> ModuleStore:
        """All that was ever added here, by whatever generation."""
        return self.group.store.modules[self.slot]

    @property
    def path(self) -> str:
        """The module's."""
        return self.store.path

    def __len__(self) -> int:
        """Number of experts."""
        return self.group.counts[self.slot]

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows in pool order."""
        return tuple(row for row in self.group.rows if self.parts[row] is not None)

    @cached_property
    def by_digest(self) -> dict[str, int]:
        """Rows by digest of the expert's bundle."""
        return {self.expert(row).digest: row for row in self.rows}

    @cached_property
    def plain(self) -> bool:
        """Whether every expert is plain factors, s B A u, and nothing else."""
        special = self.store.special
        return not special or special[0] >= self.group.length

    def vectors(self, name: str) -> VectorPages | None:
        """Return the pages of one field of `Scales`; None where no expert has it."""
        pages = self.store.vectors.get(name)
        return pages if pages is not None and pages.since < self.group.length else None

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
        return self.store.parts

    def part(self, row: int) -> ExpertModule:
        """Return the part in a row.

        Raises:
            ValueError: The row holds none.
        """
        part = self.parts[row]
        if part is None:
            raise ValueError(f"row {row} has no expert for {self.path}")
        return part

    def expert(self, row: int) -> Expert:
        """Return the expert in a row."""
        return self.group.store.experts[row]

    @cached_property
    def scalings(self) -> Tensor:
        """[n], by row, float32."""
        return self.store.scalings.values[: self.group.length]

    @cached_property
    def keys(self) -> Tensor:
        """[n], by row, int64, where each row's factors are in `pages`; -1 where an expert leaves the module alone."""
        return self.store.keys.values[: self.group.length]

    @property
    def pages(self) -> list[FactorPage]:
        """Factor pages, shared by all generations, so with places that this one does not know; none of rank 0."""
        return [page for page in self.store.factors.pages if page.a.shape[1]] if self.store.factors else []

    @cached_property
    def filled(self) -> tuple[tuple[FactorPage, int], ...]:
        """Factor pages with the number of places in them that this generation knows."""
        keys = self.keys.tolist()
        held = [(page, sum(page.first <= key < page.first + len(page.a) for key in keys)) for page in self.pages]
        return tuple((page, places) for page, places in held if places)

    @cached_property
    def shapes(self) -> FactorShapes:
        """The shapes of all factors that this generation knows, some perhaps removed since."""
        return self.store.shapes[self.group.length - 1]
