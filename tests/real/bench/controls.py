"""Controls that a claim about routing must pass (arXiv 2602.12323): the same method, with something taken away.

random           experts with random updates of the same norm: is it that anything is added?
shuffled gates   each expert has another one's gates: is it whom the gates choose?
random gates     directions that nobody trained: is it that k experts answer, whoever they are?
shuffled means   each expert tells another one's means: the same question of what solves for means
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from router.model.routed_model import RoutedModel
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.gate import standardise
from router.pool.pool import ExpertPool
from tests.lab.contenders import Bundles

Draw = torch.Generator


def pools(model: RoutedModel, seed: int) -> dict[Bundles, Callable[[], ExpertPool]]:
    """List the forms of a model's pool that controls are asked of, made when they are needed."""
    made: dict[Bundles, Callable[[Sequence[Expert], Draw], list[Expert]]] = {
        "random": _random,
        "shuffled-gates": _other_gates,
        "random-gates": _random_gates,
        "shuffled-means": _other_means,
    }
    experts = model.generation.pool.experts
    return {name: partial(_pool, make, name, experts, seed) for name, make in made.items()}


def _pool(
    make: Callable[[Sequence[Expert], Draw], list[Expert]], name: str, experts: Sequence[Expert], seed: int
) -> ExpertPool:
    pool = ExpertPool()
    for expert in make(experts, torch.Generator().manual_seed(seed)):
        # What is known of an expert is kept by its digest.
        pool = pool.add(replace(expert, digest=f"{name}:{expert.digest}"))
    return pool


def _random(experts: Sequence[Expert], draw: Draw) -> list[Expert]:
    return [_with(expert, {path: _like(part, draw) for path, part in expert.modules.items()}) for expert in experts]


def _like(part: ExpertModule, draw: Draw) -> ExpertModule:
    a, b = (torch.randn(each.shape, generator=draw) for each in (part.a, part.b))
    return replace(part, a=a, b=b * (_norm(part.a, part.b) / _norm(a, b)))


def _norm(a: Tensor, b: Tensor) -> Tensor:
    """Frobenius norm of b a, by products of the rank's size."""
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt()


def _other_gates(experts: Sequence[Expert], draw: Draw) -> list[Expert]:
    others = _deranged(experts, draw)
    return [
        _with(expert, {p: replace(part, gate=other.modules[p].gate) for p, part in expert.modules.items()})
        for expert, other in zip(experts, others, strict=True)
    ]


def _random_gates(experts: Sequence[Expert], draw: Draw) -> list[Expert]:
    return [
        _with(expert, {
            path: replace(part, gate=standardise(torch.randn(part.gate.shape, generator=draw)).float())
            for path, part in expert.modules.items()
        })
        for expert in experts
    ]  # fmt: skip


def _other_means(experts: Sequence[Expert], draw: Draw) -> list[Expert]:
    return [replace(expert, means=other.means) for expert, other in zip(experts, _deranged(experts, draw), strict=True)]


def _deranged(experts: Sequence[Expert], draw: Draw) -> list[Expert]:
    """Order experts so that nobody stands in the own place: a cycle through all of them."""
    cycle = torch.randperm(len(experts), generator=draw).tolist()
    following = {cycle[at - 1]: cycle[at] for at in range(len(cycle))}
    return [experts[following[at]] for at in range(len(experts))]


def _with(expert: Expert, modules: Mapping[str, ExpertModule]) -> Expert:
    return replace(expert, modules=MappingProxyType(dict(modules)))
