"""Memory that experts move into and never move within.

Pages are append-only: a row, once written, is not written again, and a page that is full gets a neighbour
instead of a bigger copy. So whatever a request reads stays where it is and what it is, however many experts
arrive meanwhile. Rows are reserved before they are needed; the operating system hands out the memory
behind them when they are written. Whatever can fail, fails in `reserve`, before anything is written.

A generation is a length and the rows to pass over. Gates of three modules that read one input, after five experts came:

                 page 1 (room for 3)                 page 2 (room for 3)
           +-------+-------+-------+-------+   +-------+-------+-------+
    row    | 1 / d |   0   |   1   |   2   |   |   3   |   4   |       |
           | q k v | q k v | q . v | q k v |   | q k v | q k v |       |
           +-------+-------+-------+-------+   +-------+-------+-------+
            means             |
                              an expert that leaves k alone has zeros there

    generation 3   length 3                 rows 0 1 2         a request that began then reads these to its end
    generation 5   length 5                 rows 0 1 2 3 4     page 1 did not move when page 2 was opened
    1 removed      length 5, hidden {1}     rows 0   2 3 4     its row stays for generations 3 and 5

Factors lie in pages of one rank and one activation each; a row's key says where, -1 that the module is left alone:

    keys of k      row 0: 0    row 1: -1    row 2: 16    row 3: 1    row 4: 17
    rank 16        places 0 to 15:  A and B of rows 0, 3, then room for 14 more
    rank 4         places 16 to 31: A and B of rows 2, 4, then room for 14 more
"""

import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from protocol.adapters import Activation

GATE_BYTES = torch.float32.itemsize + torch.float16.itemsize
"""What a number of a gate takes; a CPU may keep it in half precision, too."""
_FIRST_GATES = 512
_FIRST_FACTORS, _MOST_FACTORS = 16, 64
_FIRST_VECTORS = 16
_Sort = tuple[int, Activation | None]
"""Rank and activation."""


class GatePages:
    """Standardised gates of modules (slots) that read one input of width d, side by side: one product scores them all.

    The first page begins with a row of 1 / d for every module, so that the product yields the mean of
    the input, too. Pages double, so that few products serve many experts.
    """

    def __init__(self, slots: int, d: int, device: torch.device) -> None:
        self.slots, self.width, self.device = slots, d, device
        self._pages: list[Tensor] = []
        self._room = 0
        self.rows = 0
        """Experts so far."""
        self._halves: list[Tensor] = []
        self._halved: list[int] = []
        """Vectors of each page that `_halves` has."""
        self._halving = threading.Lock()

    def reserve(self) -> None:
        """Make room for one more expert."""
        if self.rows == self._room:
            head = not self._pages
            added = max(_FIRST_GATES, self._room)
            page = torch.empty(added + head, self.slots, self.width, dtype=torch.float32, device=self.device)
            if head:
                page[0] = 1 / self.width
            self._pages.append(page)
            self._room += added

    def opened_bytes(self, rows: int) -> int:
        """Return what pages for more rows would take, in bytes."""
        room = self._room
        while room < self.rows + rows:
            room += max(_FIRST_GATES, room)
        return (room - self._room) * self.slots * self.width * torch.float32.itemsize

    def append(self, gates: Sequence[Tensor | None]) -> list[Tensor]:
        """Write one expert's gates, one a slot; None stands for an expert that leaves that module alone.

        Returns:
            [d] for each slot, where the gates now are.
        """
        self.reserve()
        # Pages end where the reserved room ends.
        row = self._pages[-1][self.rows - self._room]
        for target, gate in zip(row, gates, strict=True):
            target.zero_() if gate is None else target.copy_(gate)
        self.rows += 1
        return list(row)

    def blocks(self, rows: int) -> tuple[Tensor, ...]:
        """View the first rows as matrices.

        Returns:
            [n, d] for each page, n gates; the first with the row of means, so that the heights sum to
            (rows + 1) * slots.
        """
        found, left = [], rows + 1
        for page in self._pages:
            found.append(page[: max(left, 0)].view(-1, self.width))
            left -= len(page)
        return tuple(block for block in found if len(block))

    def halves(self, rows: int) -> tuple[Tensor, ...]:
        """View the first rows over sqrt(d), which keeps products small, as `blocks`, [n, d] in half precision.

        Each is copied when it is first asked for: a pool that grew by one costs one.
        """
        blocks = self.blocks(rows)
        # Pages outlive the forward pass in which they are made: they must not be inference tensors.
        with self._halving, torch.inference_mode(mode=False), torch.no_grad():
            for at, block in enumerate(blocks):
                if at == len(self._halves):
                    self._halves.append(torch.empty_like(self._pages[at].view(-1, self.width), dtype=torch.float16))
                    self._halved.append(0)
                done, page = self._halved[at], self._halves[at]
                page[done : len(block)] = block[done:] / math.sqrt(self.width)
                self._halved[at] = max(done, len(block))
        return tuple(page[: len(block)] for page, block in zip(self._halves, blocks, strict=False))


@dataclass(frozen=True, eq=False)
class FactorPage:
    """Factors of experts of one rank and one activation at one module."""

    first: int
    """Key of the page's first place; places of all pages of a module are numbered through."""
    a: Tensor
    """[n, r, d], n places."""
    b: Tensor
    """[n, r, o], transposed against PEFT's layout."""
    activation: Activation | None
    """What stands between A and B."""


class FactorPages:
    """A and B of experts at one module, in any mix of ranks; each page holds one rank and one activation.

    They are of the device and dtype of `like`.
    """

    def __init__(self, d: int, o: int, like: Tensor) -> None:
        self._d, self._o, self._like = d, o, like.new_empty(0)
        self.pages: list[FactorPage] = []
        self._open: dict[_Sort, tuple[FactorPage, int]] = {}
        self._held: Counter[_Sort] = Counter()
        """Places by sort, in all pages."""

    def reserve(self, a: Tensor, b: Tensor, activation: Activation | None) -> None:
        """Make room for an expert's factors, a [r, d] and b [o, r].

        Raises:
            ValueError: They are of other widths.
        """
        if (a.shape[1], len(b)) != (self._d, self._o):
            raise ValueError(f"factors from {a.shape[1]} to {len(b)} among those from {self._d} to {self._o}")
        sort = (len(a), activation)
        if sort not in self._open:
            places = _page_places(self._held[sort])
            room_a, room_b = (self._like.new_empty(places, len(a), width) for width in (self._d, self._o))
            self.pages.append(FactorPage(self._held.total(), room_a, room_b, activation))
            self._held[sort] += places
            self._open[sort] = (self.pages[-1], 0)

    def opened_bytes(self, rank: int, activation: Activation | None, experts: int) -> int:
        """Return what pages for more experts of one sort would take, in bytes."""
        page, used = self._open.get((rank, activation), (None, 0))
        free, held = len(page.a) - used if page else 0, self._held[rank, activation]
        opened = 0
        while free + opened < experts:
            opened += _page_places(held + opened)
        return opened * rank * (self._d + self._o) * self._like.itemsize

    def append(self, a: Tensor, b: Tensor, activation: Activation | None) -> tuple[int, Tensor, Tensor]:
        """Write one expert's factors, a [r, d] and b [o, r].

        Returns:
            The key of their place, and views [r, d] and [o, r] of it.
        """
        self.reserve(a, b, activation)
        sort = (len(a), activation)
        page, used = self._open[sort]
        page.a[used].copy_(a)
        page.b[used].copy_(b.T)
        if used + 1 < len(page.a):
            self._open[sort] = (page, used + 1)
        else:
            del self._open[sort]
        return page.first + used, page.a[used], page.b[used].T


def _page_places(held: int) -> int:
    return min(max(_FIRST_FACTORS, held), _MOST_FACTORS)


class Column:
    """One number for each expert, contiguous, `zeros` of them zeros at first.

    Growing copies numbers, never matrices, and ever more rarely.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, zeros: int = 0) -> None:
        self.values = torch.zeros(max(_FIRST_GATES, zeros), dtype=dtype, device=device)
        """[n], more rows than were written."""
        self._rows = zeros

    def reserve(self) -> None:
        """Make room for one more row."""
        if self._rows == len(self.values):
            self.values = torch.cat([self.values, torch.empty_like(self.values)])

    def append(self, value: float) -> None:
        """Write the next row's number."""
        self.reserve()
        self.values[self._rows] = value
        self._rows += 1


class VectorPages:
    """A vector for some of the experts at one module, `since` a row; the others have zeros, which take no memory."""

    def __init__(self, width: int, since: int, device: torch.device) -> None:
        self.since = since
        self._width, self._device = width, device
        self._pages: list[Tensor] = []
        self._room = self._held = 0
        self._keys = Column(torch.int64, device, since)

    def reserve(self, vector: Tensor | None) -> None:
        """Make room for one more row, with a vector [n] or without."""
        self._keys.reserve()
        if vector is not None and self._held == self._room:
            added = max(_FIRST_VECTORS, self._room)
            # The first place of a page is for those who have no vector there.
            page = torch.empty(1 + added, self._width, dtype=torch.float32, device=self._device)
            page[0] = 0
            self._pages.append(page)
            self._room += added

    def append(self, vector: Tensor | None) -> Tensor | None:
        """Write the next row's vector, [n], or note that it has none.

        Returns:
            [n], where the vector is now.
        """
        if vector is None:
            self._keys.append(0)
            return None
        self.reserve(vector)
        place = self._pages[-1][self._held - self._room]
        place.copy_(vector)
        self._held += 1
        self._keys.append(self._held)
        return place

    def combined(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Add up vectors of chosen rows [t, k] by weights [t, k] float32; gives [t, n] float32."""
        keys, before = self._keys.values[rows], 0
        total = weights.new_zeros(len(rows), self._width)
        for page in list(self._pages):
            here = torch.where((keys > before) & (keys < before + len(page)), keys - before, 0)
            total += functional.embedding_bag(here, page, per_sample_weights=weights, mode="sum")
            before += len(page) - 1
        return total
