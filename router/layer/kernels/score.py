"""Scores of tokens against gates, of which only the best of each block of gates leave the chip."""

import triton
import triton.language as tl


@triton.jit
def softmax_unit(variance, d, eps, temperature):
    """Turn a variance into 1 / (sigma sqrt(d) temperature), the unit of a token's scores in the softmax."""
    # Not by maximum(), which would hide what is not a number.
    return 1.0 / (tl.sqrt((tl.where(variance < 0, 0.0, variance) + eps) * d) * temperature)


@triton.jit
def moments(u, mean, unit, d, u_stride, eps, temperature, BK: tl.constexpr):
    """Mean of each token's activation, and its scores' unit in the softmax.

    Sums run over distances to the mean of the first block, so that a large mean costs no digits.
    """
    t = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BK)
    head = tl.load(u + t * u_stride + columns, mask=columns < d, other=0.0)
    shift = tl.sum(head.to(tl.float32), 0) / tl.minimum(d, BK)
    total = tl.zeros((BK,), tl.float32)
    squares = tl.zeros((BK,), tl.float32)
    for start in range(0, d, BK):
        here = start + columns
        x = tl.load(u + t * u_stride + here, mask=here < d, other=0.0)
        centred = tl.where(here < d, x.to(tl.float32) - shift, 0.0)
        total += centred
        squares += centred * centred
    offset = tl.sum(total, 0) / d
    tl.store(mean + t, shift + offset)
    tl.store(unit + t, softmax_unit(tl.sum(squares, 0) / d - offset * offset, d, eps, temperature))


@triton.jit
def gates_of(gate_at, seen, z, n, slot, d, capacity, ALIGNED: tl.constexpr):
    """Find the gates of rows z at a slot, and which of them this generation sees."""
    visible = (z < n) & (tl.load(seen + slot * capacity + z, mask=z < n, other=0) != 0)
    gates = (tl.load(gate_at + z, mask=visible, other=0) + slot * d * 4).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(gates, 16) if ALIGNED else gates, visible


@triton.jit
def biases_of(bias, visible, first, slot, capacity, BN: tl.constexpr):
    """Read the biases of BN rows at a slot, in units of the softmax."""
    return tl.load(bias + slot * capacity + first + tl.arange(0, BN), mask=visible, other=0.0)


@triton.jit
def route_few(
    u, unit, gate_at, seen, bias, count, values, rows, tokens, d, u_stride, capacity, eps, temperature,
    KB: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ALIGNED: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    """Keep the KB best of BN gates for each of a few tokens; programs are blocks of gates, and slots.

    There is nothing for tensor cores to share, so all is float32; the moments are found on the way.
    """
    block, slot, n = tl.program_id(0), tl.program_id(1), tl.load(count)
    # The first block goes on where there is nobody, too, for the sake of the moments.
    if (block * BN < n) | (block == 0):
        t, columns = tl.arange(0, BT), tl.arange(0, BK)
        gates, visible = gates_of(gate_at, seen, block * BN + tl.arange(0, BN), n, slot, d, capacity, ALIGNED)
        inputs = u + t.to(tl.int64) * u_stride
        head = tl.load(inputs[:, None] + columns, mask=(t[:, None] < tokens) & (columns < d), other=0.0)
        shift = tl.sum(head.to(tl.float32), 1) / tl.minimum(d, BK)
        scores = tl.zeros((BN, BT), tl.float32)
        sums = tl.zeros((BN,), tl.float32)
        total = tl.zeros((BT,), tl.float32)
        squares = tl.zeros((BT,), tl.float32)
        for start in range(0, d, BK):
            here = start + columns
            v = tl.load(gates[:, None] + here[None, :], mask=visible[:, None] & (here[None, :] < d), other=0.0)
            x = tl.load(inputs[:, None] + here[None, :], mask=(t[:, None] < tokens) & (here[None, :] < d), other=0.0)
            centred = tl.where(here[None, :] < d, x.to(tl.float32) - shift[:, None], 0.0)
            scores += tl.sum(v[:, None, :] * centred[None, :, :], 2)
            sums += tl.sum(v, 1)
            total += tl.sum(centred, 1)
            squares += tl.sum(centred * centred, 1)
        offset = total / d
        mine = softmax_unit(squares / d - offset * offset, d, eps, temperature)
        if (block == 0) & (slot == 0):
            tl.store(unit + t, mine, mask=t < tokens)
        place = ((slot * tokens + t).to(tl.int64) * tl.num_programs(0) + block) * KB
        scores -= sums[:, None] * offset[None, :]
        if BIASED:
            scores += biases_of(bias, visible, block * BN, slot, capacity, BN)[:, None] / (mine * temperature)[None, :]
        keep(values + place, rows + place, scores, visible, t < tokens, block * BN, KB, BN)


@triton.jit
def route_many(
    u, mean, unit, gate_at, seen, bias, count, values, rows, tokens, d, u_stride, capacity, temperature,
    KB: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ALIGNED: tl.constexpr, UP: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    """Keep the KB best of BN gates for each of BT tokens; programs are blocks of tokens, of gates, and slots.

    A gate's mean is zero up to rounding, so the mean of u is taken out of the product: from u itself in float32,
    and by sum(v) afterwards where u goes to tensor cores in half precision. There a gate goes as the sum of two
    half-precision numbers, 16 bits of its 24, which chooses as float64 does.
    """
    block, slot, n = tl.program_id(1), tl.program_id(2), tl.load(count)
    if block * BN < n:
        t = tl.program_id(0) * BT + tl.arange(0, BT)
        gates, visible = gates_of(gate_at, seen, block * BN + tl.arange(0, BN), n, slot, d, capacity, ALIGNED)
        inputs = u + t.to(tl.int64) * u_stride
        centre = tl.load(mean + t, mask=t < tokens, other=0.0)
        scores = tl.zeros((BN, BT), tl.float32)
        sums = tl.zeros((BN,), tl.float32)
        for start in range(0, d, BK):
            here = start + tl.arange(0, BK)
            v = tl.load(gates[:, None] + here[None, :], mask=visible[:, None] & (here[None, :] < d), other=0.0)
            x = tl.load(inputs[:, None] + here[None, :], mask=(t[:, None] < tokens) & (here[None, :] < d), other=0.0)
            if u.dtype.element_ty == tl.float32:
                # Beyond d the gate is zero, which is enough.
                scores = tl.dot(v, tl.trans(x - centre[:, None]), scores, input_precision="ieee")
            else:
                high = v.to(x.dtype)
                low = (v - high.to(tl.float32)).to(x.dtype)
                sums += tl.sum(high.to(tl.float32) + low.to(tl.float32), 1)
                if UP:
                    high, low, x = high.to(tl.float32), low.to(tl.float32), x.to(tl.float32)
                scores = tl.dot(high, tl.trans(x), scores)
                scores = tl.dot(low, tl.trans(x), scores)
        if u.dtype.element_ty != tl.float32:
            scores -= sums[:, None] * centre[None, :]
        if BIASED:
            scale = 1.0 / (tl.load(unit + t, mask=t < tokens, other=1.0) * temperature)
            scores += biases_of(bias, visible, block * BN, slot, capacity, BN)[:, None] * scale[None, :]
        place = ((slot * tokens + t).to(tl.int64) * tl.num_programs(1) + block) * KB
        keep(values + place, rows + place, scores, visible, t < tokens, block * BN, KB, BN)


@triton.jit
def keep(values, rows, scores, visible, inside, first, KB: tl.constexpr, BN: tl.constexpr):
    """Write the KB best of scores [BN, BT] and their rows, the lowest row first among equals."""
    # What is not a number is chosen, so that the token's output shows it.
    scores = tl.where(scores == scores, scores, float("inf"))
    scores = tl.where(visible[:, None], scores, float("-inf"))
    for j in tl.static_range(KB):
        highest, which = tl.max(scores, 0), tl.argmax(scores, 0)
        tl.store(values + j, highest, mask=inside)
        tl.store(rows + j, first + which, mask=inside)
        scores = tl.where(tl.arange(0, BN)[:, None] == which[None, :], float("-inf"), scores)


@triton.jit
def best_row(
    values, rows, count, place, scale, j,
    K: tl.constexpr, KB: tl.constexpr, BN: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Find a token's j-th best row among the best of all blocks, and its weight; the lowest row among equals.

    Where fewer than K rows are visible, row -1 with weight 0 stands for the rest. A token that is not finite has
    no finite weight.
    """
    c = tl.arange(0, C)
    known = c < tl.cdiv(tl.load(count), BN) * KB
    left = tl.load(values + place + c, mask=known, other=float("-inf"))
    candidates = tl.load(rows + place + c, mask=known, other=0)
    top = tl.max(left, 0)
    total = 0.0
    weight = 0.0
    row = 0
    for q in tl.static_range(K):
        value, which = tl.max(left, 0), tl.argmax(left, 0)
        nobody = value == float("-inf")
        share = tl.where(nobody, 0.0, tl.exp((value - top) * scale))
        found = tl.where(nobody, -1, tl.sum(tl.where(c == which, candidates, 0), 0))
        total += share
        weight = tl.where(q == j, share, weight)
        row = tl.where(q == j, found, row)
        left = tl.where(c == which, float("-inf"), left)
    # The second is zero, or not a number where the token is none.
    return row, tl.where(total > 0, weight / total, weight * scale)


@triton.jit
def scale_of(unit, divisor, t, slot, BIASED: tl.constexpr):
    """Read what turns a token's scores at a slot into exponents; a calibrated slot has a temperature of its own."""
    scale = tl.load(unit + t)
    if BIASED:
        scale /= tl.load(divisor + slot)
    return scale


@triton.jit
def write_topk(
    values, rows, unit, divisor, count, experts, weights, tokens, capacity,
    K: tl.constexpr, KB: tl.constexpr, BN: tl.constexpr, C: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Write the K best rows of a token at a slot, and their weights; programs are tokens, K and slots."""
    t, j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.program_id(2) * tokens + t
    scale = scale_of(unit, divisor, t, tl.program_id(2), BIASED)
    row, weight = best_row(values, rows, count, at * tl.cdiv(capacity, BN) * KB, scale, j, K, KB, BN, C)
    tl.store(experts + at * K + j, row.to(tl.int64))
    tl.store(weights + at * K + j, weight)
