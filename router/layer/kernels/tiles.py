"""Experts' contributions tile by tile of tokens sorted by expert: the way for many tokens.

A tile of sorted tokens meets one expert or several. It takes them one after the other, so that no map of tiles
has to be built: over all tiles that is one step a tile and one an expert, what a map would come to as well.
"""

import triton
import triton.language as tl

from router.layer.kernels.rows import locate


@triton.jit
def shrink_tiles(
    u, ordered, order, weights, a_at, ranks, scalings, hidden, tokens, d, u_stride, weights_stride,
    R: tl.constexpr, RB: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, ALIGNED: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Write RB of the R values w s A u for BM sorted tokens, in that order; programs are tiles, K, blocks of ranks."""
    j, r = tl.program_id(1), tl.program_id(2) * RB + tl.arange(0, RB)
    at, end = tl.program_id(0) * BM, tl.minimum(tl.program_id(0) * BM + BM, tokens)
    place = at + tl.arange(0, BM)
    z = tl.load(ordered + j * tokens + place, mask=place < end, other=-2)
    t = tl.load(order + j * tokens + place, mask=place < end, other=0)
    inputs = u + t * u_stride
    weight = tl.load(weights + t * weights_stride + j, mask=place < end, other=0.0)
    while at < end:
        row = tl.load(ordered + j * tokens + at)
        mine = z == row
        a, rank = locate(a_at, ranks, row, u.dtype.element_ty, ALIGNED)
        total = tl.zeros((BM, RB), tl.float32)
        for start in range(0, d, BK):
            here = start + tl.arange(0, BK)
            x = tl.load(inputs[:, None] + here[None, :], mask=mine[:, None] & (here[None, :] < d), other=0.0)
            inside = (r[:, None] < rank) & (here[None, :] < d)
            factor = tl.load(a + r[:, None] * d + here[None, :], mask=inside, other=0.0)
            if UP:
                x, factor = x.to(tl.float32), factor.to(tl.float32)
            total = tl.dot(x, tl.trans(factor), total, input_precision="ieee")
        share = (weight * tl.load(scalings + tl.maximum(row, 0)))[:, None]
        # Zero times infinity is not zero.
        total = tl.where(share == 0, 0.0, total * share)
        tl.store(hidden + (j * tokens + place)[:, None] * R + r[None, :], total, mask=mine[:, None])
        at += tl.sum(mine.to(tl.int32), 0)


@triton.jit
def expand_tiles(
    y, ordered, order, b_at, ranks, hidden, tokens, o, y_stride, u,
    R: tl.constexpr, RB: tl.constexpr, BM: tl.constexpr, BO: tl.constexpr, ALIGNED: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Add the j-th experts of BM sorted tokens to BO of their outputs; pointers are at the j-th of K.

    In one launch each token occurs once, so nobody else writes its outputs: no atomics, a fixed order.
    """
    at, end = tl.program_id(0) * BM, tl.minimum(tl.program_id(0) * BM + BM, tokens)
    place, here = at + tl.arange(0, BM), tl.program_id(1) * BO + tl.arange(0, BO)
    z = tl.load(ordered + place, mask=place < end, other=-2)
    t = tl.load(order + place, mask=place < end, other=0)
    total = tl.zeros((BM, BO), tl.float32)
    while at < end:
        row = tl.load(ordered + at)
        mine = z == row
        b, rank = locate(b_at, ranks, row, u.dtype.element_ty, ALIGNED)
        for start in range(0, R, RB):
            r = start + tl.arange(0, RB)
            inside = (r[:, None] < rank) & (here[None, :] < o)
            factor = tl.load(b + r[:, None] * o + here[None, :], mask=inside, other=0.0)
            h = tl.load(hidden + place[:, None] * R + r[None, :], mask=mine[:, None], other=0.0).to(factor.dtype)
            if UP:
                h, factor = h.to(tl.float32), factor.to(tl.float32)
            # Chosen here, since zero times what another token's expert holds may not be zero.
            total = tl.where(mine[:, None], total + tl.dot(h, factor, input_precision="ieee"), total)
        at += tl.sum(mine.to(tl.int32), 0)
    outputs = y + t[:, None] * y_stride + here[None, :]
    inside = (place[:, None] < end) & (here[None, :] < o)
    total += tl.load(outputs, mask=inside, other=0.0).to(tl.float32)
    tl.store(outputs, total.to(y.dtype.element_ty), mask=inside)
