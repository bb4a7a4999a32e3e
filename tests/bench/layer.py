"""What routing costs: a routed linear module against the plain one, and against PEFT's Arrow.

    python -m tests.bench.layer

Progress on stderr; the last line of stdout is one JSON object. One thread, float32.
"""

import gc
import json
import platform
import statistics
import sys
from collections.abc import Callable
from types import SimpleNamespace

import torch
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from router.gate import standardise
from router.layer import Plan, RoutedLinear, routing
from router.methods.phatgoose import Phatgoose
from router.pool import Expert, ExpertModule, ExpertPool
from router.reference import ReferenceExpert, route
from tests.bench.models import bench_models
from tests.bench.timing import alternate, median_ratio

D, RANK, K = 2048, 16, 2
EXPERTS, TOKENS = (8, 36, 166, 500), (1, 64, 512)
INNER = {1: 20, 64: 2, 512: 1}
ROUNDS = {1: 41, 64: 25, 512: 11}
PATH = "layer"
CHECKED_TOKENS = 4


def main() -> None:
    """Run all of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    linear = nn.Linear(D, D, bias=False).requires_grad_(requires_grad=False)
    generations, slow = make_generations(max(EXPERTS))
    rows = []
    worst = 0.0
    with torch.inference_mode():
        for tokens in TOKENS:
            for experts in EXPERTS:
                row, error = measure(linear, generations[experts], slow[:experts], tokens)
                rows.append(row)
                worst = max(worst, error)
                say(row)
        del generations, slow
        gc.collect()
        models = bench_models(say)
    document = {
        "schema": 1,
        "device": f"cpu, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, 1 thread",
        "rows": rows,
        "max_rel_error": worst,
        "models": models,
    }
    sys.stdout.write(json.dumps(document) + "\n")


def say(row: object) -> None:
    """Show progress."""
    sys.stderr.write(f"{json.dumps(row)}\n")
    sys.stderr.flush()


def make_generations(count: int) -> tuple[dict[int, ExpertPool], list[ReferenceExpert]]:
    """Grow one pool and keep the generations that are asked for."""
    pool, slow, kept = ExpertPool(), [], {}
    for number in range(count):
        gate = torch.randn(D)
        a, b = torch.randn(RANK, D) / D**0.5, torch.randn(D, RANK) / RANK**0.5
        part = ExpertModule(a, b, 1.0, standardise(gate.double()).float())
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", {PATH: part}))
        slow.append(ReferenceExpert(a, b, 1.0, gate))
        if number + 1 in EXPERTS:
            kept[number + 1] = pool
    return kept, slow


def measure(
    linear: nn.Linear, pool: ExpertPool, slow: list[ReferenceExpert], tokens: int
) -> tuple[dict[str, float], float]:
    """Time one number of tokens over one number of experts.

    Returns:
        A row of the document, and the largest error as a share of max |y|.
    """
    layer, u = RoutedLinear(PATH, linear), torch.randn(1, tokens, D)
    with routing(Plan(pool, Phatgoose(K))):
        y = layer(u)[0, :CHECKED_TOKENS].double()
        exact = route(u[0, :CHECKED_TOKENS], linear.weight, None, slow, K).y
        took = alternate(
            {"linear": lambda: linear(u), "routed": lambda: layer(u)}, rounds=ROUNDS[tokens], inner=INNER[tokens]
        )
        arrow = make_arrow(pool, linear)
        turns = 1 if tokens * len(slow) > 10_000 else 3
        rival = alternate({"arrow": lambda: arrow(u), "routed": lambda: layer(u)}, rounds=turns)
        extra = peak_bytes(lambda: layer(u))
    row = {
        "tokens": tokens,
        "experts": len(slow),
        "ratio_to_linear": round(median_ratio(took["routed"], took["linear"]), 3),
        "speedup_over_arrow": round(statistics.median(rival["arrow"]) / statistics.median(took["routed"]), 1),
        "extra_peak_mib": round((extra - y.shape[1] * tokens * 4) / 2**20, 2),
    }
    return row, ((y - exact).abs().max() / exact.abs().max()).item()


def make_arrow(pool: ExpertPool, linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Build PEFT's Arrow over the same experts, its prototypes being our gates."""
    names = [f"task_{number}" for number in range(len(pool.experts))]
    config = SimpleNamespace(
        top_k=K, router_temperature=D**0.5, rng_seed=0, task_adapter_names=names, gks_adapter_names=[], use_gks=False
    )
    arrow = ArrowLoraLinearLayer(D, config)
    arrow.register_buffer("prototypes", pool.modules[PATH].gates.to(linear.weight.dtype), persistent=False)
    arrow._protos_ready = True
    lora_a, lora_b = nn.ModuleDict(), nn.ModuleDict()
    for name, expert in zip(names, pool.experts, strict=True):
        part = expert.modules[PATH]
        lora_a[name], lora_b[name] = as_linear(part.a), as_linear(part.b)
    scaling = dict.fromkeys(names, 1.0)
    return lambda u: functional.linear(u, linear.weight) + arrow(u, lora_a, lora_b, nn.Identity(), scaling)


def as_linear(weight: Tensor) -> nn.Linear:
    """Wrap a matrix."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most that a call holds at a time, in bytes that it allocates itself."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    held = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


if __name__ == "__main__":
    main()
