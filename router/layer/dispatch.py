"""Which way to compute: found out once for each kind of work, on the first of its kind."""

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial

import torch
from torch import Tensor

from router.layer import experts_cpu, experts_gpu
from router.pool.gate import Choice, CommonChoice
from router.pool.group_store import ModuleExperts

_ROUNDS = 5
_HOPELESS = 3.0
"""A way this many times slower than the best at its first run is not timed again."""
_FEW_TOKENS = 8
_FEW_RANKS = 1024
"""Ranks of all experts together up to which computing all of them may pay."""
_ALIGNED_BYTES = 16
"""Row length that torch's grouped product asks for, and the dtypes that it takes."""
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_IN_PLACE_EXPERTS = 4
"""More than these are summed on their own first: y is large against each of them and would round them off."""

_SWEPT = 1 << 24
"""Numbers read to have caches forget what they hold: 64 MiB."""

Ways = Mapping[str, Callable[[], object]]


class Dispatch:
    """Remembers the quickest way for each kind of work, for as long as the process lives.

    A kind is a dtype, a module's widths, and the magnitudes of tokens and of experts. Since the answer is
    kept, and which ways there are depends on nothing that came after a request's generation, a request computes the
    same way, bit for bit, from its first token to its last.
    """

    def __init__(self) -> None:
        self._quickest: dict[Hashable, str] = {}
        self._lock = threading.Lock()

    def add(self, module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
        """Add the chosen experts' contributions to y in place.

        Args:
            module: The experts at the module.
            u: [t, d].
            choice: Experts and weights [t, k].
            y: [t, o].
        """
        paths = offered(module, u)
        kind = (
            u.dtype, u.shape[1], y.shape[1], len(u).bit_length(), len(module).bit_length(), tuple(paths),
        )  # fmt: skip
        name = self.known(kind)
        if name is None and u.is_cuda and torch.cuda.is_current_stream_capturing():
            # Nothing can be timed in here. Whoever captures runs the model first, which settles it as a rule.
            name = next(iter(paths))
        if name is None:
            scratch = torch.zeros_like(y)
            calls = {name: partial(path, module, u, choice, scratch) for name, path in paths.items()}
            name = self.settle(kind, calls, u)
        paths[name](module, u, choice, y)

    def known(self, kind: Hashable) -> str | None:
        """Return the quickest way for a kind of work; None if nobody has tried yet."""
        return self._quickest.get(kind)

    def settle(self, kind: Hashable, ways: Ways, u: Tensor, *, cold: bool = False) -> str:
        """Find out the quickest way for a kind of work, once.

        Args:
            kind: The work.
            ways: Calls that do it, by name.
            u: [t, d], what it is done to.
            cold: Whether to time it as in a model, where other layers' weights go through the caches in between.
        """
        with self._lock:
            name = self._quickest.get(kind) or _quickest(ways, u, cold=cold)
            self._quickest[kind] = name
        return name


def offered(module: ModuleExperts, u: Tensor) -> dict[str, experts_cpu.Path]:
    """List by name the ways that can serve inputs u [t, d]."""
    if u.is_cuda:
        return experts_gpu.offered(module, u)
    paths: dict[str, experts_cpu.Path] = {"sorted": experts_cpu.add_sorted}
    if len(u) <= _FEW_TOKENS:
        paths["one by one"] = experts_cpu.add_one_by_one
    extent = module.extent
    if module.whole and len(module) * extent.rank <= _FEW_RANKS:
        paths["concatenated"] = experts_cpu.add_concatenated
    if u.dtype in _GROUPED_DTYPES and extent.step_bytes % _ALIGNED_BYTES == 0 and not extent.bare:
        paths["grouped"] = experts_cpu.add_grouped
    return paths


def _quickest(ways: Ways, u: Tensor, *, cold: bool) -> str:
    swept = torch.ones(_SWEPT) if cold else None
    best: dict[str, float] = {}
    for turn in range(1 + _ROUNDS):
        for name, call in ways.items():
            if turn > 1 and best[name] > _HOPELESS * min(best.values()):
                continue
            if swept is not None:
                swept.sum()
            took = _time(call, u)
            # The first turn only warms caches up.
            best[name] = took if turn <= 1 else min(best[name], took)
    return min(best, key=best.__getitem__)


def _time(call: Callable[[], object], u: Tensor) -> float:
    """Measure a call whose input is u [t, d]: seconds of this thread, or milliseconds of the GPU."""
    if not u.is_cuda:
        start = time.thread_time()
        call()
        return time.thread_time() - start
    begin, end = (torch.Event(u.device, enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


dispatch = Dispatch()


def add_experts(module: ModuleExperts, u: Tensor, choice: Choice | CommonChoice, y: Tensor) -> Tensor:
    """Add what the chosen experts' factors contribute to the base's output.

    Args:
        module: The experts at the module.
        u: [..., d].
        choice: Experts and weights.
        y: [..., o], the base's; written over. Nothing here is differentiable: gates are trained in
            `router.training.gated_linear`.

    Returns:
        [..., o].
    """
    o = y.shape[-1]
    in_place = y.dtype == torch.float32
    if isinstance(choice, CommonChoice):
        in_place &= len(choice.experts) <= _IN_PLACE_EXPERTS
        if in_place and y.numel() == o and module.plain:
            experts_cpu.add_one(module, u.reshape(-1), choice, y.view(o))
            return y
    elif y.is_cuda:
        y = y.contiguous()
        tokens = u.reshape(-1, u.shape[-1])
        if choice.hidden is None:
            dispatch.add(module, tokens, choice, y.view(-1, o))
        else:
            experts_gpu.add_rows(module, tokens, choice, y.view(-1, o))
        return y
    if in_place:
        y = y.contiguous()
        _add(module, u, choice, y.view(-1, o))
        return y
    total = torch.zeros(y.numel() // o, o, dtype=torch.float32, device=y.device)
    _add(module, u, choice, total)
    return y.add_(total.view_as(y))


def _add(module: ModuleExperts, u: Tensor, choice: Choice | CommonChoice, y: Tensor) -> None:
    tokens = u.reshape(-1, u.shape[-1])
    if isinstance(choice, CommonChoice):
        experts_cpu.add_common(module, tokens, choice, y)
    else:
        dispatch.add(module, tokens, choice, y)
