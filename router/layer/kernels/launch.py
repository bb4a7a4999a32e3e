"""Launches of the kernels: grids from capacities, nothing that waits for the device or asks it anything."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs

from router.layer.choice import Choice
from router.layer.kernels.rows import expand, select_shrink, shrink
from router.layer.kernels.score import moments, route_few, route_many, write_topk
from router.layer.kernels.tiles import expand_tiles, shrink_tiles
from router.pool.device_table import DeviceView
from router.pool.gate import EPS

MOST = 8
"""Experts a token at most."""
FEWEST = 8
"""Tokens that are multiplied without tensor cores, which would have little to share."""
FEW = 16
"""Tokens for which nothing is sorted: a tile would hold them all, at several launches more."""
_UP = bool(knobs.runtime.interpret)
_BLOCKS = 512
_TILE = 64
_LEAST_RANK = 16
_ALIGNED_BYTES = 16


class Blocks(NamedTuple):
    """How the routing product is cut."""

    tokens: int
    gates: int
    features: int
    warps: int


def blocks(tokens: int, dtype: torch.dtype, capacity: int) -> Blocks:
    """Cut the product of some tokens with room for some gates."""
    half = dtype.itemsize < torch.float32.itemsize
    if tokens <= FEWEST:
        # Few gates a program, so that reading them keeps all of the device busy.
        width = triton.next_power_of_2(tokens)
        return Blocks(tokens=width, gates=max(4, capacity // _BLOCKS), features=1024 // width, warps=4)
    if tokens < _TILE:
        return Blocks(tokens=16, gates=max(16, capacity // _BLOCKS), features=128 if half else 64, warps=4)
    return Blocks(tokens=128 if half else 64, gates=64, features=32 if half else 16, warps=8)


def choose(view: DeviceView, u: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor | None]:
    """Choose for tokens u [t, d] at all slots.

    Returns:
        Experts and weights [..., t, k] by slot, -1 and 0 where there are fewer; and for few tokens, by the
        way, their hidden values w s A u [..., t, k, r], which `expand` takes.
    """
    tokens, d = u.shape
    slots, cut = len(view.seen), blocks(tokens, u.dtype, view.capacity)
    across = triton.cdiv(view.capacity, cut.gates)
    kept = min(k, cut.gates)
    candidates = across * kept
    values = u.new_empty(slots, tokens, candidates, dtype=torch.float32)
    rows = u.new_empty(slots, tokens, candidates, dtype=torch.int32)
    unit, columns = u.new_empty(tokens, dtype=torch.float32), view.columns
    # Where there is nothing to add, kernels are given something that they do not look at.
    biased, bias, divisor = view.bias is not None, view.bias, view.temperature
    bias, divisor = (unit if each is None else each for each in (bias, divisor))
    sizes = {"KB": kept, "BT": cut.tokens, "BN": cut.gates, "BK": cut.features, "ALIGNED": _aligned(view, u)}
    sizes["BIASED"] = biased
    if tokens <= FEWEST:
        route_few[(across, slots)](
            u, unit, columns.gate_at, view.seen, bias, view.count, values, rows, tokens, d, u.stride(0), view.capacity,
            EPS, temperature, **sizes, num_warps=cut.warps,
        )  # fmt: skip
    else:
        mean = torch.empty_like(unit)
        moments[(tokens,)](u, mean, unit, d, u.stride(0), EPS, temperature, BK=1024)
        route_many[(triton.cdiv(tokens, cut.tokens), across, slots)](
            u, mean, unit, columns.gate_at, view.seen, bias, view.count, values, rows, tokens, d, u.stride(0),
            view.capacity, temperature, **sizes, UP=_UP, num_warps=cut.warps,
        )  # fmt: skip
    experts = u.new_empty(slots, tokens, k, dtype=torch.int64)
    weights = u.new_empty(slots, tokens, k, dtype=torch.float32)
    sizes = {"K": k, "KB": kept, "BN": cut.gates, "C": triton.next_power_of_2(candidates), "BIASED": biased}
    if tokens > FEW:
        write_topk[(tokens, k, slots)](
            values, rows, unit, divisor, view.count, experts, weights, tokens, view.capacity, **sizes
        )  # fmt: skip
        return experts, weights, None
    hidden = u.new_empty(slots, tokens, k, view.rank, dtype=torch.float32)
    select_shrink[(tokens, k * slots, view.rank // 4)](
        u, values, rows, unit, divisor, view.count, experts, weights, columns.a_at, columns.ranks, columns.scalings,
        hidden, tokens, d, u.stride(0), view.capacity, **sizes, R=view.rank, RB=4, BK=1024, ALIGNED=_aligned(view, u),
    )  # fmt: skip
    return experts, weights, hidden


def add_rows(view: DeviceView, slot: int, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Add experts token by token for u [t, d], choices [t, k] and y [t, o]; takes up hidden values where there are."""
    (tokens, k), columns, hidden = choice.experts.shape, view.columns, choice.hidden
    if hidden is None:
        hidden = u.new_empty(tokens, k, view.rank, dtype=torch.float32)
        shrink[(tokens, k, view.rank // 4)](
            u, choice.experts, choice.weights, columns.a_at[slot], columns.ranks[slot], columns.scalings[slot],
            hidden, u.shape[1], u.stride(0), choice.experts.stride(0), choice.weights.stride(0),
            R=view.rank, RB=4, BK=1024, ALIGNED=_aligned(view, u),
        )  # fmt: skip
    o = y.shape[1]
    expand[(tokens, triton.cdiv(o, 128))](
        y, choice.experts, columns.b_at[slot], columns.ranks[slot], hidden, o, y.stride(0), choice.experts.stride(0),
        hidden.stride(0), u, K=k, R=hidden.shape[2], RB=_LEAST_RANK, BO=128, ALIGNED=_aligned_rows(u, o),
    )  # fmt: skip


def add_tiles(view: DeviceView, slot: int, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Add experts to y [t, o] tile by tile of tokens u [t, d], sorted by the j-th of their experts [t, k] in turn."""
    (tokens, k), columns, o = choice.experts.shape, view.columns, y.shape[1]
    ordered, order = torch.sort(choice.experts.T, dim=1, stable=True)
    ordered, order = ordered.contiguous(), order.contiguous()
    hidden = u.new_empty(k, tokens, view.rank, dtype=torch.float32)
    wide = torch.float32.itemsize // u.itemsize
    tiles, ranks, across = triton.cdiv(tokens, _TILE), min(view.rank, _LEAST_RANK * wide), _TILE * wide
    shrink_tiles[(tiles, k, view.rank // ranks)](
        u, ordered, order, choice.weights, columns.a_at[slot], columns.ranks[slot], columns.scalings[slot], hidden,
        tokens, u.shape[1], u.stride(0), choice.weights.stride(0),
        R=view.rank, RB=ranks, BM=_TILE, BK=64, ALIGNED=_aligned(view, u), UP=_UP,
    )  # fmt: skip
    for j in range(k):
        expand_tiles[(tiles, triton.cdiv(o, across))](
            y, ordered[j], order[j], columns.b_at[slot], columns.ranks[slot], hidden[j], tokens, o, y.stride(0), u,
            R=view.rank, RB=ranks, BM=_TILE, BO=across, ALIGNED=_aligned_rows(u, o), UP=_UP, num_warps=8,
        )  # fmt: skip


def _aligned(view: DeviceView, u: Tensor) -> bool:
    return view.aligned and _aligned_rows(u, u.shape[1])


def _aligned_rows(u: Tensor, features: int) -> bool:
    return features * u.itemsize % _ALIGNED_BYTES == 0
