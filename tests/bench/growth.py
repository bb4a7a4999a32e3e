"""What growing costs while requests run.

    python -m tests.bench.growth

Progress on stderr; the last line of stdout is one JSON object. One thread computes, one asks.
"""

import gc
import json
import statistics
import sys
import threading
import time

import torch
from torch import Tensor, nn

from router.layer.routed_linear import RoutedLinear, RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.pool.pool import ExpertPool
from tests.bench.experts import make_expert

D, RANK, K, LAYERS = 1024, 16, 2, 4
SHAPES = {f"{at}.proj": (D, D) for at in range(LAYERS)}
SIZES = (10, 100, 1000)
SAMPLES, ARRIVALS, TOKENS = 15, 100, 8


def main() -> None:
    """Run all of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(*(RoutedLinear(path, nn.Linear(D, D)) for path in SHAPES))
    model.requires_grad_(requires_grad=False)
    u = torch.randn(1, TOKENS, D)
    pools = {0: ExpertPool()}
    add_ms: dict[str, float] = {}
    firsts: dict[int, float] = {}
    for size, smaller in zip(SIZES, (0, *SIZES), strict=False):
        pool = pools[smaller]
        for number in range(smaller, size):
            pool = pool.add(make_expert(number, SHAPES, RANK))
        pools[size] = pool
        run(model, pool, u)
        add_ms[str(size)], firsts[size] = grow(model, pool, u)
        sys.stderr.write(f"{size} experts: add {add_ms[str(size)]:.2f} ms, next forward pass x{firsts[size]:.2f}\n")
    failed, equal = arrive_under_load(model, pools[100], u)
    document = {
        "schema": 1,
        "add_ms": add_ms,
        "ratio_1000_to_10": round(add_ms["1000"] / add_ms["10"], 2),
        "first_forward_ratio": round(firsts[1000], 2),
        "requests_failed": failed,
        "old_generation_bitwise_equal": equal,
    }
    sys.stdout.write(json.dumps(document) + "\n")


def run(model: nn.Module, pool: ExpertPool, u: Tensor) -> Tensor:
    """Answer one request."""
    with torch.inference_mode(), routing(RoutingPlan(pool, Phatgoose(K))):
        return model(u)


def grow(model: nn.Module, pool: ExpertPool, u: Tensor) -> tuple[float, float]:
    """Add experts one at a time, each followed by requests.

    Returns:
        Median milliseconds of an addition, and the first request after it as a multiple of the second.
    """
    added, ratios = [], []
    for number in range(SAMPLES):
        expert = make_expert(10**6 + len(pool.experts) * SAMPLES + number, SHAPES, RANK)
        gc.collect()
        start = time.process_time()
        pool = pool.add(expert)
        added.append((time.process_time() - start) * 1e3)
        took = []
        for _ in range(2):
            start = time.process_time()
            run(model, pool, u)
            took.append(time.process_time() - start)
        ratios.append(took[0] / took[1])
    return round(statistics.median(added), 3), statistics.median(ratios)


def arrive_under_load(model: nn.Module, pool: ExpertPool, u: Tensor) -> tuple[int, bool]:
    """Add experts while another thread asks, both the newest and the first generation.

    Returns:
        Requests that failed or gave something that is not finite, and whether every answer of the first
        generation was bitwise the same.
    """
    expected = run(model, pool, u)
    newest, failed, changed, asked = [pool], 0, 0, 0
    over = threading.Event()

    def ask() -> None:
        nonlocal failed, changed, asked
        while not over.is_set() or asked < ARRIVALS:
            try:
                changed += not torch.equal(run(model, pool, u), expected)
                failed += not run(model, newest[0], u).isfinite().all()
            except Exception as error:  # noqa: BLE001 - whatever it is, the request failed
                sys.stderr.write(f"failed: {error}\n")
                failed += 1
            asked += 1

    asking = threading.Thread(target=ask)
    asking.start()
    for number in range(ARRIVALS):
        newest[0] = newest[0].add(make_expert(2 * 10**6 + number, SHAPES, RANK))
        if number % 10 == 9:
            time.sleep(0.01)
    over.set()
    asking.join()
    sys.stderr.write(f"{ARRIVALS} experts arrived during {2 * asked} requests\n")
    return failed, not changed


if __name__ == "__main__":
    main()
