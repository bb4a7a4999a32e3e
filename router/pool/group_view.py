"""Modules that read the same input, as one release sees them."""

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.pool.calibration import Calibration
from router.pool.device_table import DeviceView, GroupCalibration
from router.pool.group_store import KEPT_PROTOTYPES, GroupStore
from router.pool.module_store import ModuleStore
from router.pool.pages import GatePages
from router.pool.prototypes import Prototype


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
        counts = tuple(n + (module.parts[row] is not None) for n, module in self._counted)
        return replace(self, length=row + 1, hidden=self.hidden + others, counts=counts)

    def without(self, digests: Collection[str]) -> "RouteGroup":
        """See some experts no more."""
        gone = [row for row in self.rows if self.store.experts[row].digest in digests]
        if not gone:
            return self
        counts = tuple(n - sum(module.parts[row] is not None for row in gone) for n, module in self._counted)
        return replace(self, hidden=(*self.hidden, *gone), counts=counts)

    @property
    def _counted(self) -> Iterable[tuple[int, ModuleStore]]:
        """Number of experts and store of each module."""
        return zip(self.counts, self.store.modules, strict=True)

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
    def gaps(self) -> bool:
        """Whether there are rows to pass over."""
        return bool(self.hidden) or any(module.absent for module in self.store.modules)

    def absent(self, slot: int) -> list[int]:
        """Return the rows of experts that leave a slot's module alone."""
        rows = self.store.modules[slot].absent
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
    def view(self) -> DeviceView:
        """What this generation sees of the table."""
        return self.store.table.view(self.length, self.hidden, self.calibration)

    @cached_property
    def hidden_index(self) -> Tensor | None:
        """[n], hidden rows as a tensor; None where nothing is hidden."""
        return torch.tensor(self.hidden, device=self.blocks[0].device) if self.hidden else None
