"""Modules that read the same input, and the experts there: one store, many generations of views."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from router.pool.device_table import DeviceTable
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.module_store import ModuleStore
from router.pool.pages import GatePages
from router.pool.prototypes import Prototype

KEPT_PROTOTYPES = 4
"""Kinds of vectors beside the gates that are kept at once; a request may name one of its own."""


class GroupStore:
    """All that was ever added for a few modules that share an input; only grows.

    One row an expert, over all of the group's modules (slots). Whoever appends holds the pool's lock; whoever reads
    knows how many rows to read.

    Args:
        paths: The modules, one slot each.
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
