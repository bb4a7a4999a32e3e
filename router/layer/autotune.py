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

    Since the answer is kept, and which ways there are depends on nothing that came after a request's generation, a
    request computes the same way, bit for bit, from its first token to its last.
    """

    def __init__(self) -> None:
        self.known: dict[Hashable, str] = {}
        """The quickest way for each kind of work that was tried."""
        self._lock = threading.Lock()

    def settle(self, kind: Hashable, ways: Ways, u: Tensor, *, cold: bool = False) -> str:
        """Find out, once, which of several calls does a kind of work on u [t, d] the quickest.

        With `cold` they are timed as in a model, where other layers' weights go through the caches in between.
        """
        with self._lock:
            name = self.known[kind] = self.known.get(kind) or _quickest(ways, u, cold=cold)
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
    """Measure a call: seconds of this thread, or milliseconds of the GPU that u is on."""
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
