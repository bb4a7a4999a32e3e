"""Experts' contributions token by token: the way for few tokens, where each is likely to have its own experts."""

import triton
import triton.language as tl

from router.layer.kernels.score import best_row, scale_of


@triton.jit
def locate(at, ranks, row, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    """Find a row's factor, A or B, and its rank; nobody, row -1, has rank 0."""
    factor = tl.load(at + tl.maximum(row, 0)).to(tl.pointer_type(dtype))
    rank = tl.where(row < 0, 0, tl.load(ranks + tl.maximum(row, 0)))
    return tl.multiple_of(factor, 16) if ALIGNED else factor, rank


@triton.jit
def _shrink(
    u, a_at, ranks, scalings, hidden, row, weight, first, d,
    RB: tl.constexpr, BK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write RB hidden values w s A u, from the first on, of one token, to which u points, and one row of a slot."""
    a, rank = locate(a_at, ranks, row, u.dtype.element_ty, ALIGNED)
    r = first + tl.arange(0, RB)
    total = tl.zeros((RB,), tl.float32)
    for start in range(0, d, BK):
        here = start + tl.arange(0, BK)
        x = tl.load(u + here, mask=here < d, other=0.0).to(tl.float32)
        factor = tl.load(a + r[:, None] * d + here[None, :], mask=(r[:, None] < rank) & (here[None, :] < d), other=0.0)
        total += tl.sum(factor.to(tl.float32) * x[None, :], 1)
    share = weight * tl.load(scalings + tl.maximum(row, 0))
    # Zero times infinity is not zero.
    tl.store(hidden + r, tl.where(share == 0, 0.0, total * share))


@triton.jit
def select_shrink(
    u, values, rows, unit, divisor, count, experts, weights, a_at, ranks, scalings, hidden, tokens, d, u_stride,
    capacity, K: tl.constexpr, KB: tl.constexpr, BN: tl.constexpr, C: tl.constexpr, BIASED: tl.constexpr,
    R: tl.constexpr, RB: tl.constexpr, BK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Choose as `router.layer.kernels.score.write_topk` does, and go on to the hidden values at once.

    Programs are tokens, K of every slot, and blocks of ranks. Each finds the choice anew, which costs less than
    another launch.
    """
    t, j, slot = tl.program_id(0).to(tl.int64), tl.program_id(1) % K, tl.program_id(1) // K
    at = slot * tokens + t
    place = at * tl.cdiv(capacity, BN) * KB
    row, weight = best_row(values, rows, count, place, scale_of(unit, divisor, t, slot, BIASED), j, K, KB, BN, C)
    if tl.program_id(2) == 0:
        tl.store(experts + at * K + j, row.to(tl.int64))
        tl.store(weights + at * K + j, weight)
    mine = slot * capacity
    _shrink(
        u + t * u_stride, a_at + mine, ranks + mine, scalings + mine, hidden + (at * K + j) * R, row, weight,
        tl.program_id(2) * RB, d, RB, BK, ALIGNED,
    )  # fmt: skip


@triton.jit
def shrink(
    u, experts, weights, a_at, ranks, scalings, hidden, d, u_stride, experts_stride, weights_stride,
    R: tl.constexpr, RB: tl.constexpr, BK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write the hidden values of a choice that was made already; programs are tokens, K, and blocks of ranks."""
    t, j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, weight = tl.load(experts + t * experts_stride + j), tl.load(weights + t * weights_stride + j)
    place = (t * tl.num_programs(1) + j) * R
    _shrink(
        u + t * u_stride, a_at, ranks, scalings, hidden + place, row, weight, tl.program_id(2) * RB, d,
        RB, BK, ALIGNED,
    )  # fmt: skip


@triton.jit
def expand(
    y, experts, b_at, ranks, hidden, o, y_stride, experts_stride, hidden_stride, u,
    K: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, BO: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Add a token's experts to BO of its outputs: y is read once and rounded once, in a fixed order."""
    t, here = tl.program_id(0).to(tl.int64), tl.program_id(1) * BO + tl.arange(0, BO)
    total = tl.load(y + t * y_stride + here, mask=here < o, other=0.0).to(tl.float32)
    for j in tl.static_range(K):
        row = tl.load(experts + t * experts_stride + j)
        b, rank = locate(b_at, ranks, row, u.dtype.element_ty, ALIGNED)
        for start in range(0, R, RB):
            r = start + tl.arange(0, RB)
            inside = (r[:, None] < rank) & (here[None, :] < o)
            factor = tl.load(b + r[:, None] * o + here[None, :], mask=inside, other=0.0)
            h = tl.load(hidden + t * hidden_stride + j * R + r)
            total += tl.sum(factor.to(tl.float32) * h[:, None], 0)
    tl.store(y + t * y_stride + here, total.to(y.dtype.element_ty), mask=here < o)
