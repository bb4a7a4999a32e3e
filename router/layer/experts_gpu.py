"""Ways to choose experts and to add what they contribute on a GPU, none of which waits for the device.

Triton's kernels where there is Triton, else plain PyTorch. All of it depends on shapes and on what the host knows
of a generation, never on values, so it can be captured in a CUDA graph; calibration is left out there.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from router.layer.experts_cpu import Path
from router.pool.expert_module import activated
from router.pool.gate import Choice, joined, standardise
from router.pool.group_store import ModuleExperts, RouteGroup
from router.pool.pages import FactorPage

_SCORES = 1 << 24
"""Scores held at a time, so that memory does not grow with the pool."""
_GATHERED = 1 << 26
"""Numbers of gathered factors held at a time."""
_HOPPER = (9, 0)
"""Compute capability from which on torch's grouped product reads its offsets on the device."""
_ALIGNED_BYTES = 16
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FEW_TOKENS = 64
_precision = Lock()  # the setting is the process's


def select(group: RouteGroup, u: Tensor, k: int, temperature: float = 1.0) -> list[Choice | None]:
    """Choose the k best experts at every module of a group.

    Args:
        group: The modules and their experts.
        u: [t, d].
        k: Experts a token.
        temperature: As in `router.layer.topk.select`.
    """
    kernels, view = _kernels(u.dtype), group.view
    # The kernels find gates by themselves, and nothing but gates.
    if kernels is None or group.prototype is not None or k > kernels.MOST or view.dtype != u.dtype:
        step = max(1, _SCORES // ((group.length + 1) * len(group.counts)))
        parts = [_select(group, chunk, k, temperature) for chunk in torch.split(u, step)]
        return [joined(choices) for choices in zip(*parts, strict=True)]
    with _beside(u):
        experts, weights, hidden = kernels.choose(view, _rows(u), min(k, max(group.counts)), temperature)
    found: list[Choice | None] = []
    for slot, count in enumerate(group.counts):
        few = slice(min(k, count))
        # Where there are bottleneck adapters, whose hidden values are more than A u, `offered` knows another way.
        mine = hidden[slot] if hidden is not None and view.identity else None
        found.append(Choice(experts[slot, :, few], weights[slot, :, few], mine) if count else None)
    return found


def offered(module: ModuleExperts, u: Tensor) -> dict[str, Path]:
    """List by name the ways that can serve inputs u [t, d]; the first goes where nothing can be measured."""
    view = module.group.view
    if _kernels(u.dtype) is not None and view.identity and view.dtype == u.dtype:
        few, many = ("rows", add_rows), ("tiles", add_tiles)
        return dict([few, many] if len(u) <= _FEW_TOKENS else [many, few])
    paths: dict[str, Path] = {"gathered": add_gathered}
    if _groups_on_device(module, u):
        paths["grouped"] = add_grouped
    return paths


def add_rows(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Serve token by token, u [t, d] and y [t, o]."""
    with _beside(u):
        _launch().add_rows(module.group.view, module.slot, _rows(u), choice, y)


def add_tiles(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Sort tokens, u [t, d] and y [t, o], by expert, and serve them tile by tile."""
    with _beside(u):
        _launch().add_tiles(module.group.view, module.slot, _rows(u), choice, y)


def add_gathered(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Copy the factors of every token's experts, u [t, d] and y [t, o], a few tokens at a time."""
    k, widest = choice.experts.shape[1], max(1, module.extent.rank) * max(u.shape[1], y.shape[1])
    step = max(1, _GATHERED // (k * widest))
    shares = choice.weights * module.scalings[choice.experts]
    keys = module.keys[choice.experts]
    for start in range(0, len(u), step):
        now = slice(start, start + step)
        mine, total = u[now], torch.zeros_like(y[now], dtype=torch.float32)
        for page in _filled(module):
            place = keys[now] - page.first
            # Filled, since a factor that nobody here chose may not be finite.
            elsewhere = ((place < 0) | (place >= len(page.a)))[:, :, None]
            place = place.clamp(0, len(page.a) - 1)
            hidden = torch.einsum("td,tkrd->tkr", mine, page.a[place])
            hidden = activated(hidden, page.activation).float() * shares[now, :, None]
            hidden = hidden.masked_fill_(elsewhere, 0).to(u.dtype)
            out = torch.einsum("tkr,tkro->tko", hidden, page.b[place]).masked_fill_(elsewhere, 0)
            total += out.sum(1, dtype=torch.float32)
        y[now] += total


def add_grouped(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Sort tokens, u [t, d] and y [t, o], page by page: two grouped products each, far below torch's 1024 groups."""
    k = choice.experts.shape[1]
    keys = module.keys[choice.experts].flatten()
    shares = (choice.weights * module.scalings[choice.experts]).flatten()
    total = torch.zeros(len(y), y.shape[1], dtype=torch.float32, device=y.device)
    for page in _filled(module):
        places = len(page.a)
        place = keys - page.first
        place = torch.where((place >= 0) & (place < places), place, places)
        ordered, order = torch.sort(place, stable=True)
        ends = torch.searchsorted(ordered, torch.arange(places, device=u.device), right=True).int()
        inputs = u.index_select(0, order.div(k, rounding_mode="floor"))
        hidden = activated(functional.grouped_mm(inputs, page.a.transpose(1, 2), offs=ends), page.activation)
        hidden = _aligned(hidden.float() * shares[order, None], u.dtype)
        outputs = functional.grouped_mm(hidden, page.b, offs=ends)
        # Tokens of other pages come last, where the product writes nothing.
        outputs = torch.where((ordered < places)[:, None], outputs, 0)
        # Put back by a gather, which sums in a fixed order where index_add_ would not.
        total += outputs[torch.argsort(order)].view(len(u), k, -1).sum(1, dtype=torch.float32)
    y += total


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
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
        rows, highest = best(table[:, :, slot].masked_fill(~seen, -torch.inf), min(k, count))
        here = temperature if calibration is None else temperature * calibration.temperatures[slot]
        found.append(Choice(rows, torch.softmax(highest / (d**0.5 * here), dim=1)) if count else None)
    return found


def _beside(u: Tensor) -> AbstractContextManager[None]:
    """Make u's device the thread's: Triton launches there, wherever its tensors are."""
    return torch.cuda.device_of(u)  # type: ignore[no-untyped-call]


def _rows(u: Tensor) -> Tensor:
    return u if u.stride(-1) == 1 else u.contiguous()


def _aligned(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast [t, r], with rows so far apart as torch's grouped product asks for, whatever the rank."""
    numbers = _ALIGNED_BYTES // dtype.itemsize
    room = hidden.new_empty(len(hidden), -(-hidden.shape[1] // numbers) * numbers, dtype=dtype)
    room[:, : hidden.shape[1]] = hidden
    return room[:, : hidden.shape[1]]


def _filled(module: ModuleExperts) -> list[FactorPage]:
    """List the pages that hold factors: an expert that only scales has none."""
    return [page for page in module.pages if page.a.shape[1]]


def _groups_on_device(module: ModuleExperts, u: Tensor) -> bool:
    page = module.pages[0]
    aligned = all(factor.shape[2] * factor.itemsize % _ALIGNED_BYTES == 0 for factor in (page.a, page.b))
    return u.dtype == torch.bfloat16 and aligned and torch.cuda.get_device_capability(u.device) >= _HOPPER


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


@cache
def _kernels(dtype: torch.dtype) -> ModuleType | None:
    """Triton's kernels, where there are Triton and the C compiler that it asks for to launch them."""
    if dtype not in _DTYPES:
        return None
    compilers = ("clang", "gcc")
    found = find_spec("triton") is not None and ("CC" in os.environ or any(map(shutil.which, compilers)))
    return import_module("router.layer.kernels.launch") if found else None


def _launch() -> ModuleType:
    return import_module("router.layer.kernels.launch")
