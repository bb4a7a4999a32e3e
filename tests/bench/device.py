"""What a GPU can do at best, and how long work takes on it."""

import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.bench.timing import alternate

_SQUARE = 8192
_COPIED_BYTES = 1 << 31
_LAUNCHES = 200


def captured(call: Callable[[], Tensor], device: torch.device) -> Callable[[], object]:
    """Run work once to warm up, then capture it in a CUDA graph; elsewhere it is just called."""
    if device.type != "cuda":
        return call
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay


def take_turns(
    work: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int, inner: int = 1
) -> dict[str, list[float]]:
    """Time several pieces of work in turn by events on the device.

    Args:
        work: What to time.
        device: Where it runs; off a GPU, CPU time is measured.
        rounds: Turns after a first one that is not counted.
        inner: Calls a turn.

    Returns:
        Seconds a call, one figure a round.
    """
    if device.type != "cuda":
        return alternate(work, rounds=rounds, inner=inner)
    took: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, call in work.items():
            begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(inner):
                call()
            end.record()
            end.synchronize()
            if turn:
                took[name].append(begin.elapsed_time(end) / 1e3 / inner)
    return took


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure what nothing goes beyond: matrix products in bfloat16, copies in memory, launches in a graph."""
    left, right = (torch.randn(_SQUARE, _SQUARE, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target, small = torch.empty_like(source), torch.zeros(1, device=device)

    def launches() -> Tensor:
        for _ in range(_LAUNCHES):
            small.add_(1)
        return small

    took = take_turns(
        {
            "product": lambda: torch.mm(left, right, out=out),
            "copy": lambda: target.copy_(source),
            "launches": captured(launches, device),
        },
        device,
        rounds=10,
        inner=5,
    )
    best = {name: statistics.median(times) for name, times in took.items()}
    return {
        "matmul_tflops": round(2 * _SQUARE**3 / best["product"] / 1e12, 1),
        "bandwidth_tb_s": round(2 * _COPIED_BYTES / best["copy"] / 1e12, 2),
        "launch_us": round(best["launches"] / _LAUNCHES * 1e6, 2),
    }
