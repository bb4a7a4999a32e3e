"""The experts of one module, as one release sees them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.group_view import RouteGroup
from router.pool.module_store import FactorShapes, ModuleStore
from router.pool.pages import FactorPage, VectorPages


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
        special = self.store.special
        return not special or special[0] >= self.group.length

    def vectors(self, name: str) -> VectorPages | None:
        """Return the pages of one field of `Scales`; None where no expert has it."""
        pages = self.store.vectors.get(name)
        return pages if pages is not None and pages.since < self.group.length else None

    @property
    def all_seen(self) -> bool:
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
    def empty(self) -> Tensor | None:
        """[n], by row, whether an expert leaves the module alone; None where all touch it."""
        return self.keys < 0 if self.group.absent(self.slot) else None

    @cached_property
    def scalings(self) -> Tensor:
        """[n], by row, float32."""
        return self.store.scalings.first(self.group.length)

    @cached_property
    def keys(self) -> Tensor:
        """[n], by row, int64, where each row's factors are in `pages`; -1 where an expert leaves the module alone."""
        return self.store.keys.first(self.group.length)

    @property
    def pages(self) -> list[FactorPage]:
        """Factor pages, shared by all generations."""
        return self.store.pages

    @cached_property
    def filled(self) -> tuple[tuple[FactorPage, int], ...]:
        """Factor pages with the number of places in them that this generation knows; not those of rank 0."""
        keys, pages = self.keys.tolist(), [page for page in self.pages if page.a.shape[1]]
        held = [(page, sum(page.first <= key < page.first + len(page.a) for key in keys)) for page in pages]
        return tuple((page, places) for page, places in held if places)

    @cached_property
    def shapes(self) -> FactorShapes:
        """The shapes of all factors that this generation knows, some perhaps removed since."""
        return self.store.shapes[self.group.length - 1]
