"""Top-k on the GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional

from router.layer.choice import Choice, concatenate_choices
from router.layer.kernels import available
from router.pool.gate import standardise
from router.pool.group_view import RouteGroup

_SCORES = 1 << 24
"""Scores held at a time, so that memory does not grow with the pool."""


_precision = Lock()  # the setting is the process's


def choose_on_gpu(group: RouteGroup, u: Tensor, k: int, temperature: float = 1.0) -> list[Choice | None]:
    """Choose the k best experts for u [t, d] at every module of a group, as `router.layer.topk.choose_topk`."""
    triton, view = available.kernels(u.dtype), group.view
    # The kernels find gates by themselves, and nothing but gates.
    if triton is None or group.prototype is not None or k > triton.MOST or view.dtype != u.dtype:
        step = max(1, _SCORES // ((group.length + 1) * len(group.counts)))
        parts = [_select(group, chunk, k, temperature) for chunk in torch.split(u, step)]
        return [concatenate_choices(choices) for choices in zip(*parts, strict=True)]
    with available.beside(u):
        experts, weights, hidden = triton.choose(
            view, available.contiguous_rows(u), min(k, max(group.counts)), temperature
        )
    found: list[Choice | None] = []
    for slot, count in enumerate(group.counts):
        few = slice(min(k, count))
        # Where there are bottleneck adapters, whose hidden values are more than A u, `offered` knows another way.
        mine = hidden[slot] if hidden is not None and view.identity else None
        found.append(Choice(experts[slot, :, few], weights[slot, :, few], mine) if count else None)
    return found


def stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return rows and scores [t, k] of the best, the lowest row first among equals.

    Score and row make one integer, so that no two are equal: topk leaves open in which order equals come.
    """
    # Zero has one sign, what is no number comes first, and a negative number's other bits count the other way round.
    bits = (scores.nan_to_num(torch.inf, torch.inf, -torch.inf) + 0.0).view(torch.int32)
    ascending = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    last = scores.shape[1] - 1
    keys = (ascending << 32) | (last - torch.arange(last + 1, device=scores.device))
    rows = last - (keys.topk(k, dim=1).values & 0xFFFFFFFF)
    return rows, scores.gather(1, rows)


def _select(group: RouteGroup, u: Tensor, k: int, temperature: float) -> list[Choice | None]:
    slots, d = len(group.counts), u.shape[1]
    centred = standardise(u.float())
    with _in_full():
        scores = torch.cat([functional.linear(centred, block) for block in group.blocks], dim=1)
    table, calibration = scores[:, slots:].view(len(u), group.length, slots), group.calibration
    if calibration is not None:
        table[:, : len(calibration.bias)].add_(calibration.bias, alpha=d**0.5)
    found: list[Choice | None] = []
    for slot, count in enumerate(group.counts):
        seen = group.view.seen[slot, : group.length] > 0
        rows, highest = stable_topk(table[:, :, slot].masked_fill(~seen, -torch.inf), min(k, count))
        here = temperature if calibration is None else temperature * calibration.temperatures[slot]
        found.append(Choice(rows, torch.softmax(highest / (d**0.5 * here), dim=1)) if count else None)
    return found


@contextmanager
def _in_full() -> Iterator[None]:
    """Keep a caller's TF32 out of the scores: it would choose other experts."""
    matmul = torch.backends.cuda.matmul
    with _precision:
        former, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = former
