"""Random experts, fast and slow, without a base model around them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from protocol.adapters import Activation
from router.layer import topk_gpu
from router.layer.choice import Choice, CommonChoice
from router.layer.routed_linear import RoutedLinear
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule, Scales
from router.pool.gate import standardise
from router.pool.group_view import ModuleExperts
from router.pool.pool import ExpertPool
from tests.router.reference import ReferenceExpert

PATH = "block.linear"
SIBLINGS = ("a.q", "a.k", "a.v")
"""Modules that read one input, by their names."""


def make_experts(
    count: int, d: int, o: int, *, seed: int = 0, absent: int = 0, equal_rank: int | None = None
) -> tuple[ExpertPool, list[ReferenceExpert]]:
    """Experts of mixed ranks and alphas; every `absent`-th leaves the module alone."""
    generator = torch.Generator().manual_seed(seed)
    pool, slow = ExpertPool(), []
    for number in range(count):
        rank, scaling = equal_rank or 1 + number % 7, 0.25 * (1 + number % 5)
        gate = torch.randn(d, generator=generator) + 3 * torch.randn(1, generator=generator)
        a = torch.randn(rank, d, generator=generator) / d**0.5
        b = torch.randn(o, rank, generator=generator)
        modules = {"another": ExpertModule(a, b, scaling, standardise(gate))}
        if not absent or number % absent:
            modules[PATH] = ExpertModule(a, b, scaling, standardise(gate.double()).float())
            slow.append(ReferenceExpert(a, b, scaling, gate))
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "c", modules))
    return pool, slow


def make_layer(d: int, o: int, *, bias: bool = False, seed: int = 1) -> RoutedLinear:
    torch.manual_seed(seed)
    return RoutedLinear(PATH, nn.Linear(d, o, bias=bias).requires_grad_(requires_grad=False))


def pool_of(gates: Iterable[Tensor], *paths: str) -> ExpertPool:
    """Experts of which only the gates matter."""
    pool = ExpertPool()
    for number, gate in enumerate(gates):
        part = ExpertModule(torch.ones(1, len(gate)), torch.ones(4, 1), 1.0, standardise(gate.double()).float())
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", dict.fromkeys(paths or (PATH,), part)))
    return pool


def siblings(count: int, d: int, o: int) -> tuple[ExpertPool, dict[str, list[ReferenceExpert]]]:
    """Experts at modules that read one input; each leaves one of them alone, or none."""
    generator = torch.Generator().manual_seed(0)
    pool = ExpertPool()
    slow: dict[str, list[ReferenceExpert]] = {path: [] for path in SIBLINGS}
    for number in range(count):
        parts = {}
        for path in [path for at, path in enumerate(SIBLINGS) if at != number % 4]:
            gate, a, b = (torch.randn(*shape, generator=generator) for shape in ((d,), (1, d), (o, 1)))
            parts[path] = ExpertModule(a, b, 1.0, standardise(gate.double()).float())
            slow[path].append(ReferenceExpert(a, b, 1.0, gate))
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", parts))
    return pool, slow


def in_dtype(pool: ExpertPool, dtype: torch.dtype) -> ExpertPool:
    """Grow the pool once more with factors of a dtype."""
    grown = ExpertPool()
    for expert in pool.experts:
        parts = {
            path: ExpertModule(part.a.to(dtype), part.b.to(dtype), part.scaling, part.gate)
            for path, part in expert.modules.items()
        }
        grown = grown.add(Expert(expert.digest, expert.name, "", parts))
    return grown


def mixed_kinds(d: int, o: int, *, bottleneck: bool = True) -> ExpertPool:
    """Grow a pool of experts that have factors, scale the base's product, or both."""
    generator = torch.Generator().manual_seed(0)
    pool = ExpertPool()
    for number in range(8):
        rank = 0 if number % 4 == 1 else 3
        a, b, gate = (torch.randn(*shape, generator=generator) for shape in ((rank, d), (o, rank), (d,)))
        inner, outer = torch.randn(d, generator=generator), torch.randn(o, generator=generator)
        scales = Scales(inner if number % 4 == 1 else None, outer) if number % 4 in (1, 2) else None
        activation: Activation | None = "relu" if bottleneck and number % 4 == 3 else None
        part = ExpertModule(a, b, 0.5, standardise(gate), activation, scales)
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", {PATH: part}))
    return pool


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


def choice_of(module: ModuleExperts, u: Tensor, k: int) -> Choice:
    found = topk_gpu.choose_on_gpu(module.group, u, k)[module.slot]
    assert found is not None
    return found


def as_lists(found: Choice | CommonChoice | None) -> tuple[list[list[int]], list[list[float]]]:
    """Experts and weights by token, however few tokens there are."""
    assert found is not None
    if isinstance(found, CommonChoice):
        return [found.experts], [found.weights]
    return found.experts.tolist(), found.weights.tolist()
