"""What routing costs: routed linear modules against plain ones, and against PEFT's Arrow.

    python -m tests.bench.layer

A token passes through many layers, so several run in turn: together they are larger than a cache, and weights,
gates and factors come from memory as they do in a model. `ratio_one_layer` is the figure where one layer runs
again and again, and parts of it stay in the cache.

Arrow stacks all experts' factors in every call. If the C library gives that memory back to the system after each,
its pages cost Arrow more than what it computes; so the rival is timed in two states, each of the whole process:

- `speedup_over_arrow`: glibc keeps blocks of up to 32 MiB that are freed. All other figures are of this state, too.
- `speedup_over_arrow_memory_returned`: it gives blocks of 128 KiB and more back at once.

A real process starts in the second state and soon is in the first, since glibc comes to keep blocks as large as the
largest, of up to 32 MiB, that it has freed. One token's stacks of 166 experts (21 MiB each) are then kept as a rule;
those of 500 experts (63 MiB), and what 64 tokens make of 166 experts (83 MiB), are given back in both states. An
allocator that keeps these, too, makes Arrow two to four times as quick there.

Progress on stderr; the last line of stdout is one JSON object. One thread, float32.
"""

import ctypes
import gc
import json
import platform
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from router.layer.routed_linear import RoutedLinear, RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.gate import standardise
from router.pool.pool import ExpertPool
from tests.bench.models import bench_models
from tests.bench.timing import alternate, median_ratio
from tests.router.reference import ReferenceExpert, route

D, RANK, K = 2048, 16, 2
EXPERTS, TOKENS = (8, 36, 166, 500), (1, 64, 512)
LAYERS = 4
"""Of 16 MiB each."""
ROUNDS = {1: 61, 64: 15, 512: 5}
ONE_LAYER_ROUNDS, ONE_LAYER_INNER = {1: 21, 64: 9, 512: 3}, {1: 20, 64: 2, 512: 1}
PATHS = tuple(f"layers.{number}" for number in range(LAYERS))
CHECKED_TOKENS = 4
_LONG = 10_000
"""Tokens times experts from which on a turn of Arrow takes seconds."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's settings in malloc.h."""
_FIRST_BYTES, _MOST_BYTES = 128 << 10, 32 << 20
"""Blocks from which on it gives them back: in a process that starts, and at most."""


def main() -> None:
    """Run all of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    set_memory(kept=False)
    linears = [nn.Linear(D, D, bias=False).requires_grad_(requires_grad=False) for _ in PATHS]
    generations, slow = make_generations(max(EXPERTS))
    rows = []
    worst = 0.0
    with torch.inference_mode():
        sizes = [(tokens, experts) for tokens in TOKENS for experts in EXPERTS]
        # First, since a heap that once kept memory would serve blocks of this state, too.
        returned = []
        for tokens, experts in sizes:
            returned.append(against_arrow(linears, generations[experts], tokens))
            say({"tokens": tokens, "experts": experts, "speedup_over_arrow_memory_returned": returned[-1]})
        set_memory(kept=True)
        for (tokens, experts), speedup in zip(sizes, returned, strict=True):
            row, error = measure(linears, generations[experts], slow[:experts], tokens)
            rows.append(row | {"speedup_over_arrow_memory_returned": speedup})
            worst = max(worst, error)
            say(rows[-1])
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


def set_memory(*, kept: bool) -> None:
    """Have glibc keep what is freed, as far as it ever does by itself, or give it back; no other C library is told."""
    if platform.libc_ver()[0] == "glibc":
        mallopt, least = ctypes.CDLL(None).mallopt, _MOST_BYTES if kept else _FIRST_BYTES
        mallopt(_MMAP_THRESHOLD, least)
        # The end of the heap is cut off where so much of it is free.
        mallopt(_TRIM_THRESHOLD, 2 * least)


def say(row: object) -> None:
    """Show progress."""
    sys.stderr.write(f"{json.dumps(row)}\n")
    sys.stderr.flush()


def make_generations(count: int) -> tuple[dict[int, ExpertPool], list[ReferenceExpert]]:
    """Grow one pool and keep the generations that are asked for; the reference knows the first layer's experts."""
    pool, slow, kept = ExpertPool(), [], {}
    for number in range(count):
        parts = {}
        for path in PATHS:
            gate = torch.randn(D)
            a, b = torch.randn(RANK, D) / D**0.5, torch.randn(D, RANK) / RANK**0.5
            parts[path] = ExpertModule(a, b, 1.0, standardise(gate.double()).float())
            if path == PATHS[0]:
                slow.append(ReferenceExpert(a, b, 1.0, gate))
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", parts))
        if number + 1 in EXPERTS:
            kept[number + 1] = pool
    return kept, slow


def measure(
    linears: list[nn.Linear], pool: ExpertPool, slow: list[ReferenceExpert], tokens: int
) -> tuple[dict[str, float], float]:
    """Time one number of tokens over one number of experts.

    Returns:
        A row of the document, and the largest error as a share of max |y|.
    """
    layers = [RoutedLinear(path, linear) for path, linear in zip(PATHS, linears, strict=True)]
    u = torch.randn(1, tokens, D)
    with routing(RoutingPlan(pool, Phatgoose(K))):
        y = layers[0](u)[0, :CHECKED_TOKENS].double()
        exact = route(u[0, :CHECKED_TOKENS], linears[0].weight, None, slow, K).y
        took = alternate({"linear": each(linears, u), "routed": each(layers, u)}, rounds=ROUNDS[tokens])
        hot = alternate(
            {"linear": each(linears[:1], u), "routed": each(layers[:1], u)},
            rounds=ONE_LAYER_ROUNDS[tokens], inner=ONE_LAYER_INNER[tokens],
        )  # fmt: skip
        extra = peak_bytes(lambda: layers[0](u))
    row = {
        "tokens": tokens,
        "experts": len(slow),
        "ratio_to_linear": round(median_ratio(took["routed"], took["linear"]), 3),
        "ratio_one_layer": round(median_ratio(hot["routed"], hot["linear"]), 3),
        "speedup_over_arrow": against_arrow(linears, pool, tokens),
        "extra_peak_mib": round((extra - y.shape[1] * tokens * 4) / 2**20, 2),
    }
    return row, ((y - exact).abs().max() / exact.abs().max()).item()


def against_arrow(linears: list[nn.Linear], pool: ExpertPool, tokens: int) -> float:
    """Time PEFT's Arrow as a multiple of routed layers."""
    arrows = [make_arrow(pool, path, linear) for path, linear in zip(PATHS, linears, strict=True)]
    layers = [RoutedLinear(path, linear) for path, linear in zip(PATHS, linears, strict=True)]
    u = torch.randn(1, tokens, D)
    # Tenths of a second a turn, so the rival has few of them.
    rounds = 2 if tokens * len(pool.experts) > _LONG else 5
    with routing(RoutingPlan(pool, Phatgoose(K))):
        took = alternate({"arrow": each(arrows, u), "routed": each(layers, u)}, rounds=rounds)
    return round(median_ratio(took["arrow"], took["routed"]), 1)


def each(layers: Sequence[Callable[[Tensor], Tensor]], u: Tensor) -> Callable[[], None]:
    """Run u [b, s, d] through layers one after another."""

    def run() -> None:
        for layer in layers:
            layer(u)

    return run


def make_arrow(pool: ExpertPool, path: str, linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Build PEFT's Arrow over the same experts, its prototypes being our gates."""
    names = [f"task_{number}" for number in range(len(pool.experts))]
    config = SimpleNamespace(
        top_k=K, router_temperature=D**0.5, rng_seed=0, task_adapter_names=names, gks_adapter_names=[], use_gks=False
    )
    arrow = ArrowLoraLinearLayer(D, config)
    arrow.register_buffer("prototypes", pool.modules[path].gates.to(linear.weight.dtype), persistent=False)
    arrow._protos_ready = True
    lora_a, lora_b = nn.ModuleDict(), nn.ModuleDict()
    for name, expert in zip(names, pool.experts, strict=True):
        part = expert.modules[path]
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
