"""Ratios that hold on a busy machine."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(work: Mapping[str, Callable[[], object]], *, rounds: int, inner: int = 1) -> dict[str, list[float]]:
    """Time several pieces of work in turn, in CPU time of this process.

    Whatever slows the machine down slows neighbours in a round alike, so ratios within a round last.

    Args:
        work: What to time.
        rounds: Turns after a first one that is not counted.
        inner: Calls a turn.

    Returns:
        Seconds a call, one figure a round.
    """
    took: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, call in work.items():
            start = time.process_time()
            for _ in range(inner):
                call()
            if turn:
                took[name].append((time.process_time() - start) / inner)
    return took


def median_ratio(over: list[float], under: list[float]) -> float:
    """Median over rounds of one piece's time as a multiple of another's."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
