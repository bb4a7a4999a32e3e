"""What routing costs on a GPU: the layer, a decoder's step, and growth under captured graphs.

    python -m tests.bench.gpu

Progress on stderr; the last line of stdout is one JSON object. bfloat16; plain and routed work are captured in CUDA
graphs alike and timed in turns by events. Goals are ratios; a row that misses its own says so.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from router.layer.routed_linear import RoutedLinear, RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.pool.gate import standardise
from router.pool.pool import ExpertPool, _modules
from tests.bench.device import captured, ceilings, take_turns
from tests.bench.experts import make_expert
from tests.bench.layer import make_arrow, say
from tests.bench.timing import median_ratio
from tests.router.reference import ReferenceExpert, route

D, INNER, RANK, K, LAYERS = 2048, 5120, 16, 2, 24
PATH = "layer"
EXPERTS, TOKENS, STEP_EXPERTS = (36, 166, 500, 1000), (1, 8, 64, 512, 4096), (36, 166, 1000)
ROUNDS, CALLS = 15, 10
MANY = 4096
PREFILL_GOALS = {36: 1.6, 166: 1.8, 500: 2.2, 1000: 3.0}
STEP_GOALS = {36: 1.6, 166: 1.7, 1000: 2.0}
FLOOR_FACTOR = 1.3
RIVAL_EXPERTS, ARRIVALS = 166, 100


def main() -> None:
    """Run all of it, or say that there is nothing to run it on."""
    if not torch.cuda.is_available():
        sys.stderr.write("There is no CUDA GPU here, so nothing was measured; `make bench-layer` measures the CPU.\n")
        sys.stdout.write(json.dumps({"schema": 1, "device": None}) + "\n")
        return
    device = torch.device("cuda")
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    document: dict[str, Any] = {"schema": 1, "device": torch.cuda.get_device_name(device)}
    document["ceilings"] = ceilings(device)
    say(document)
    pools = grow_pools(EXPERTS, {PATH: (D, D)}, device, torch.bfloat16)
    document["rows"] = [measure_layer(pools[experts], tokens, device) for tokens in TOKENS for experts in EXPERTS]
    document["same_choice_as_float64"] = {
        str(experts): agreement(pools[experts], MANY, device) for experts in (166, 1000)
    }
    document["growth"] = measure_growth(pools[RIVAL_EXPERTS], device)
    document["max_rel_error"] = max_error(device)
    del pools
    torch.cuda.empty_cache()
    stack = Stack(LAYERS, D, INNER).to(device, torch.bfloat16)
    pools = grow_pools(STEP_EXPERTS, stack.shapes, device, torch.bfloat16)
    document["steps"] = [measure_step(stack, pools[experts], device) for experts in STEP_EXPERTS]
    sys.stdout.write(json.dumps(document) + "\n")


def grow_pools(
    sizes: Sequence[int], shapes: dict[str, tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> dict[int, ExpertPool]:
    """Grow one pool of random experts and keep the generations that are asked for."""
    pool, kept = ExpertPool(), {}
    for number in range(max(sizes)):
        pool = pool.add(make_expert(number, shapes, RANK, device, dtype))
        if number + 1 in sizes:
            kept[number + 1] = pool
    return kept


def measure_layer(pool: ExpertPool, tokens: int, device: torch.device) -> dict[str, Any]:
    """Time one number of tokens over one number of experts."""
    count = len(pool.experts)
    shape = pool.modules[PATH].part(0)
    linear = nn.Linear(len(shape.gate), len(shape.b), bias=False, device=device, dtype=shape.a.dtype)
    layer, u = RoutedLinear(PATH, linear), torch.randn(1, tokens, len(shape.gate), device=device, dtype=shape.a.dtype)
    distinct = distinct_experts(pool, u)
    with routing(RoutingPlan(pool, Phatgoose(K))):
        work = {"linear": captured(lambda: linear(u), device), "routed": captured(lambda: layer(u), device)}
        took = take_turns(work, device, rounds=ROUNDS, inner=CALLS)
        ratio = median_ratio(took["routed"], took["linear"])
        row: dict[str, Any] = {"tokens": tokens, "experts": count, "distinct": distinct, "ratio": round(ratio, 2)}
        if count == RIVAL_EXPERTS:
            row["speedup_over_arrow"] = against_arrow(pool, linear, layer, u)
    # What has to be read at least, as a multiple of the base's weight: gates in float32, factors of the chosen.
    d, o = len(shape.gate), len(shape.b)
    size = shape.a.itemsize
    row["floor"] = round(1 + (4 * count * d + distinct * RANK * (d + o) * size) / (d * o * size), 2)
    goal = PREFILL_GOALS.get(count) if tokens == MANY else FLOOR_FACTOR * row["floor"] if tokens <= 64 else None
    if goal is not None:
        row |= {"goal": round(goal, 2), "met": ratio <= goal}
    say(row)
    return row


def distinct_experts(pool: ExpertPool, u: Tensor) -> int:
    """Count the experts that at least one token is given."""
    choice = Phatgoose(K).choose(pool.modules[PATH], u)
    assert choice is not None
    return len(set(torch.as_tensor(choice.experts).flatten().tolist()))


def against_arrow(pool: ExpertPool, linear: nn.Linear, layer: nn.Module, u: Tensor) -> float | str:
    """Time PEFT's Arrow over the same experts, neither in a graph."""
    try:
        arrow = make_arrow(pool, PATH, linear)
        took = take_turns({"arrow": lambda: arrow(u), "routed": lambda: layer(u)}, u.device, rounds=5)
    except torch.OutOfMemoryError:
        return "Arrow is out of memory"
    return round(median_ratio(took["arrow"], took["routed"]), 1)


def agreement(pool: ExpertPool, tokens: int, device: torch.device) -> float:
    """Return the share of bfloat16 activations for which the same experts are chosen as in float64."""
    module = pool.modules[PATH]
    gates = module.gates
    u = (torch.randn(tokens, gates.shape[1], device=device) + 1).bfloat16()
    choice = Phatgoose(K).choose(module, u)
    assert choice is not None
    exact = (standardise(u.double()) @ gates.double().T).topk(K).indices
    return (torch.as_tensor(choice.experts).sort().values == exact.sort().values).all(1).double().mean().item()


def measure_growth(pool: ExpertPool, device: torch.device) -> dict[str, Any]:
    """Add experts under a graph that was captured before they came."""
    # A graph has views of its own, which follow the pool; those of the generation stay what they are.
    groups = {paths: replace(group) for paths, group in pool._groups.items()}
    held = replace(pool, _groups=groups, modules=_modules(groups))
    shape = pool.modules[PATH].part(0)
    linear = nn.Linear(len(shape.gate), len(shape.b), bias=False, device=device, dtype=shape.a.dtype)
    layer, u = RoutedLinear(PATH, linear), torch.randn(1, 1, len(shape.gate), device=device, dtype=shape.a.dtype)
    kept = torch.empty(1, 1, len(shape.b), device=device, dtype=shape.a.dtype)

    def run(generation: ExpertPool) -> Tensor:
        with routing(RoutingPlan(generation, Phatgoose(K))):
            y: Tensor = layer(u)
        return y

    replay = captured(lambda: kept.copy_(run(held)), device)
    before, newest, other = run(pool), pool, 0
    for number in range(ARRIVALS):
        newest = newest.add(make_expert(10**6 + number, {PATH: (len(shape.gate), len(shape.b))}, RANK, device, u.dtype))
        for paths, group in newest._groups.items():
            groups[paths].view.follow(group.view)
        replay()
        other += not torch.equal(kept, run(newest))
    return {
        "added": ARRIVALS,
        "captures": 1,
        "answers_unlike_those_without_a_graph": other,
        "old_generation_bitwise_equal": torch.equal(run(pool), before),
    }


def max_error(device: torch.device) -> float:
    """Compare float32 layers with the float64 reference; the largest error as a share of max |y|."""
    worst, d, o = 0.0, 512, 768
    pool = grow_pools([RIVAL_EXPERTS], {PATH: (d, o)}, device, torch.float32)[RIVAL_EXPERTS]
    parts = [expert.modules[PATH] for expert in pool.experts]
    slow = [ReferenceExpert(part.a.cpu(), part.b.cpu(), part.scaling, part.gate.cpu()) for part in parts]
    linear = nn.Linear(d, o, bias=False, device=device)
    for tokens in (1, 9, 64, 300):
        u = torch.randn(1, tokens, d, device=device)
        with routing(RoutingPlan(pool, Phatgoose(K))):
            y = RoutedLinear(PATH, linear)(u)[0, -8:].double().cpu()
        exact = route(u[0, -8:].cpu(), linear.weight.cpu(), None, slow, K).y
        worst = max(worst, ((y - exact).abs().max() / exact.abs().max()).item())
    return worst


class Stack(nn.Module):
    """The linear modules that a T5 decoder runs for one more token, without what stands between them."""

    def __init__(self, layers: int, d: int, inner: int) -> None:
        super().__init__()
        names = {"0.SelfAttention": "qkvo", "1.EncDecAttention": "qo"}
        self.shapes = {
            f"decoder.block.{at}.layer.{block}.{name}": (d, d)
            for at in range(layers) for block, each in names.items() for name in each
        }  # fmt: skip
        for at in range(layers):
            dense = f"decoder.block.{at}.layer.2.DenseReluDense."
            self.shapes |= {dense + "wi_0": (d, inner), dense + "wi_1": (d, inner), dense + "wo": (inner, d)}
        self._layers = layers
        self._by_path = {path: RoutedLinear(path, nn.Linear(*shape, bias=False)) for path, shape in self.shapes.items()}
        self.held = nn.ModuleList(self._by_path.values())

    def forward(self, u: Tensor) -> Tensor:
        """Run u [b, s, d] through all of it."""
        for at in range(self._layers):
            block = f"decoder.block.{at}.layer."

            def run(name: str, x: Tensor, block: str = block) -> Tensor:
                y: Tensor = self._by_path[block + name](x)
                return y

            own = "0.SelfAttention."
            u = run(own + "o", run(own + "q", u) + run(own + "k", u) + run(own + "v", u))
            u = run("1.EncDecAttention.o", run("1.EncDecAttention.q", u))
            dense = "2.DenseReluDense."
            u = run(dense + "wo", run(dense + "wi_0", u) * run(dense + "wi_1", u))
            u = functional.rms_norm(u, u.shape[-1:])
        return u


def measure_step(stack: Stack, pool: ExpertPool, device: torch.device) -> dict[str, Any]:
    """Time one token through a decoder's linear modules, as a multiple of those without experts."""
    d = next(iter(stack.shapes.values()))[0]
    u = torch.randn(1, 1, d, device=device, dtype=next(stack.parameters()).dtype)

    def routed() -> Tensor:
        with routing(RoutingPlan(pool, Phatgoose(K))):
            y: Tensor = stack(u)
        return y

    work = {"plain": captured(lambda: stack(u), device), "routed": captured(routed, device)}
    took = take_turns(work, device, rounds=ROUNDS)
    ratio = median_ratio(took["routed"], took["plain"])
    goal = STEP_GOALS.get(len(pool.experts))
    row = {"experts": len(pool.experts), "modules": len(stack.shapes), "ratio": round(ratio, 2)}
    row |= {} if goal is None else {"goal": goal, "met": ratio <= goal}
    say(row)
    return row


if __name__ == "__main__":
    main()
