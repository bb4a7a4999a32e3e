"""Which of several ways is the quickest here: timed once for each shape."""

import threading
import time
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

_ROUNDS = 5
_HOPELESS = 3.0
"""A way this many times slower than the best at its first run is not timed again."""
_SWEPT = 1 << 24
"""Numbers read to have caches forget what they hold: 64 MiB."""

Ways = Mapping[str, Callable[[], object]]


class Autotuner:
    """Remembers the quickest way for each kind of work, for as long as the process lives.

    A kind is a dtype, a module's widths, and the magnitudes of tokens and of experts. Since the answer is
    kept, and which ways there are depends on nothing that came after a request's generation, a request computes the
    same way, bit for bit, from its first token to its last.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, str] = {}
        self._lock = threading.Lock()

    def known(self, kind: Hashable) -> str | None:
        """Return the quickest way for a kind of work; None if nobody has tried yet."""
        return self._known.get(kind)

    def settle(self, kind: Hashable, ways: Ways, u: Tensor, *, cold: bool = False) -> str:
        """Find out the quickest way for a kind of work, once.

        Args:
            kind: The work.
            ways: Calls that do it, by name.
            u: [t, d], what it is done to.
            cold: Whether to time it as in a model, where other layers' weights go through the caches in between.
        """
        with self._lock:
            name = self._known.get(kind) or _quickest(ways, u, cold=cold)
            self._known[kind] = name
        return name


autotuner = Autotuner()
"""The process's own."""


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
