"""Where every expert of a group is, for code that runs on a device by itself.

The host knows experts as Python objects; a kernel knows addresses. A table holds one number of each kind a row,
in columns whose own addresses stay until the pool doubles, so that a CUDA graph which reads them goes on to do so.

Order of publication: `ExpertPool.add` waits until an expert's tensors are in the pages, then gives out the
generation that sees it. The first request of that generation writes the table's new rows, and waits for them.
Only then are there a count and a mask that let a kernel look at these rows, so no kernel, on whatever
stream, reads half an expert.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from router.pool.calibration import Calibration
from router.pool.expert_module import ExpertModule

_FIRST_ROWS = 512
_LEAST_RANK = 16
_BYTES = 16
"""A device loads this many bytes at once, from addresses that are multiples of them."""


class DeviceColumns(NamedTuple):
    """One number a row; zeros where no expert is yet, so that nobody reads beyond the pages."""

    gate_at: Tensor
    """[n] int64, addresses of the gates; those of further slots follow each [d]."""
    a_at: Tensor
    """[..., n] int64, addresses of A by slot."""
    b_at: Tensor
    """[..., n] int64, addresses of B, transposed, by slot."""
    ranks: Tensor
    """[..., n] int32 by slot."""
    scalings: Tensor
    """[..., n] float32 by slot."""

    @classmethod
    def zeros(cls, slots: int, rows: int) -> "DeviceColumns":
        """Make columns without experts, on the host."""
        by_slot = (torch.int64, torch.int64, torch.int32, torch.float32)
        each = (torch.zeros(slots, rows, dtype=dtype) for dtype in by_slot)
        return cls(torch.zeros(rows, dtype=torch.int64), *each)


@dataclass(frozen=True, eq=False)
class GroupCalibration:
    """Biases and temperatures at a few modules that share an input, by row; later rows have none."""

    bias: Tensor
    """[n, ...] float32 by row and slot, in units of the softmax."""
    flat: NDArray[np.float32]
    """All of them on the host, those of a row together."""
    temperatures: tuple[float, ...]
    """By slot."""

    @classmethod
    def of(
        cls, calibration: Calibration, experts: Sequence[str], paths: Sequence[str], device: torch.device
    ) -> "GroupCalibration":
        """Look up what a release says about modules, given by path, and experts, by digest in the order of rows."""
        mine = calibration.over(experts, paths)
        bias = torch.from_numpy(mine.bias.T.copy())
        return cls(bias.to(device), bias.numpy().ravel(), tuple(np.exp(mine.log_temperature).tolist()))


@dataclass(frozen=True, eq=False)
class DeviceView:
    """What one generation sees of a table."""

    columns: DeviceColumns
    count: Tensor
    """[1] int32, rows to look at."""
    seen: Tensor
    """[..., n] uint8 by slot: 1 where the generation sees an expert that touches the module."""
    rank: int
    """A power of two that no rank exceeds."""
    dtype: torch.dtype
    """Of all factors."""
    identity: bool
    """Whether every expert's f is the identity; kernels know no other."""
    aligned: bool
    """Whether all rows of gates and of A begin at multiples of 16 bytes."""
    bias: Tensor | None = None
    """[..., n] float32 by slot, added to scores in units of the softmax; None for none."""
    temperature: Tensor | None = None
    """[...] float32 by slot; None where there is no bias."""

    @property
    def capacity(self) -> int:
        """Rows for which there is room."""
        return self.seen.shape[1]

    def follow(self, newer: "DeviceView") -> None:
        """Go on to another generation in place, for those who hold on to these tensors: captured graphs.

        Raises:
            ValueError: The other outgrew what these tensors, or kernels made for their ranks, can hold.
        """
        facts = [(each.rank, each.identity, each.aligned, each.bias is None) for each in (self, newer)]
        if newer.columns is not self.columns or facts[0] != facts[1]:
            raise ValueError("the pool outgrew the table; capture again")
        for name in ("count", "seen", "bias", "temperature"):
            if (held := getattr(self, name)) is not None:
                held.copy_(getattr(newer, name))


class DeviceTable:
    """The columns of a group, which follow its store.

    Args:
        parts: The store's parts by slot and row; None where an expert leaves the slot's module alone.
    """

    def __init__(self, parts: Sequence[Sequence[ExpertModule | None]]) -> None:
        self._parts = parts
        first = next(part for row in zip(*parts, strict=True) for part in row if part is not None)
        self._device, self._dtype = first.gate.device, first.a.dtype
        self._lock = threading.Lock()
        self._rows = 0
        self._rank = _LEAST_RANK
        self._identity = self._aligned = True
        self._present = torch.zeros(len(parts), 0, dtype=torch.uint8)
        self._host = DeviceColumns.zeros(len(parts), 0)
        self._columns = self._host

    def view(self, length: int, hidden: Sequence[int], calibration: GroupCalibration | None = None) -> DeviceView:
        """See the first rows of the table but for some that are hidden."""
        # A view outlives the forward pass in which it may be made.
        with self._lock, torch.inference_mode(mode=False):
            if self._rows < length:
                self._reach(length)
            seen = self._present.clone()
            seen[:, length:] = 0
            seen[:, list(hidden)] = 0
            count = torch.tensor([length], dtype=torch.int32, device=self._device)
            bias = temperature = None
            if calibration is not None:
                bias = torch.zeros(seen.shape, dtype=torch.float32, device=self._device)
                bias[:, : len(calibration.bias)] = calibration.bias.T
                temperature = torch.tensor(calibration.temperatures, device=self._device)
            return DeviceView(
                self._columns, count, seen.to(self._device), self._rank, self._dtype, self._identity, self._aligned,
                bias, temperature,
            )  # fmt: skip

    def _reach(self, length: int) -> None:
        room = self._present.shape[1]
        doubled = length > room
        if doubled:
            rows = max(_FIRST_ROWS, 1 << (length - 1).bit_length())
            former, self._host = self._host, DeviceColumns.zeros(len(self._parts), rows)
            for new, old in zip(self._host, former, strict=True):
                new[..., :room] = old
            self._present = functional.pad(self._present, (0, rows - room))
        for row in range(self._rows, length):
            for slot, parts in enumerate(self._parts):
                if (part := parts[row]) is not None:
                    self._write(slot, row, part)
        if doubled:
            self._columns = DeviceColumns(*(column.to(self._device) for column in self._host))
        else:
            for column, host in zip(self._columns, self._host, strict=True):
                column[..., self._rows : length] = host[..., self._rows : length]
        self._rows = length

    def _write(self, slot: int, row: int, part: ExpertModule) -> None:
        rank, d = part.a.shape
        self._present[slot, row] = 1
        self._host.gate_at[row] = part.gate.data_ptr() - slot * d * part.gate.itemsize
        self._host.a_at[slot, row] = part.a.data_ptr()
        self._host.b_at[slot, row] = part.b_t.data_ptr()
        self._host.ranks[slot, row] = rank
        self._host.scalings[slot, row] = part.scaling
        self._rank = max(self._rank, 1 << (rank - 1).bit_length())
        self._identity &= part.activation is None
        self._aligned &= d * part.a.itemsize % _BYTES == 0 and d * part.gate.itemsize % _BYTES == 0
