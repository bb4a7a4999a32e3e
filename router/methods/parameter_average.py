"""One expert whose A and B are the means of all A and all B.

The other way of merging in the code of arXiv 2402.05859: it averages the factors on their own, which mixes every
expert's B with every other's A; `router.methods.merged` is the mean of the products.

Ranks may differ: a smaller A and B are padded with zeros to the largest rank. The scaling s of each expert goes into
its B. Experts that leave a module alone do not count there.
"""

import hashlib
from types import MappingProxyType
from weakref import WeakKeyDictionary

import torch

from router.layer.routed_linear import RoutingPlan
from router.methods.single_expert import SingleExpert
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.pool import ExpertPool


def averaged(pool: ExpertPool) -> RoutingPlan:
    """Route by the average of a pool's experts, in a pool of its own; work grows with the pool, once a generation."""
    known = _averages.get(pool)
    if known is None:
        modules = {path: _average([module.part(row) for row in module.rows]) for path, module in pool.modules.items()}
        digest = hashlib.sha256(",".join(expert.digest for expert in pool.experts).encode()).hexdigest()
        expert = Expert(digest, f"average of {len(pool.experts)}", "", MappingProxyType(modules))
        known = _averages[pool] = ExpertPool().add(expert)
        for former in list(_averages)[:-_KEPT]:
            _averages.pop(former, None)
    return RoutingPlan(known, SingleExpert(known.experts[0]))


_KEPT = 2
"""Averages that are kept: each has pages of its own, and a request may name any subset."""
_averages: WeakKeyDictionary[ExpertPool, ExpertPool] = WeakKeyDictionary()


def _average(parts: list[ExpertModule]) -> ExpertModule:
    first, r, n = parts[0], max(len(part.a) for part in parts), len(parts)
    a = torch.zeros(r, first.a.shape[1], dtype=torch.float64, device=first.a.device)
    b = torch.zeros(len(first.b), r, dtype=torch.float64, device=first.b.device)
    for part in parts:
        a[: len(part.a)] += part.a
        b[:, : len(part.a)] += part.b.double() * part.scaling
    return ExpertModule((a / n).to(first.a), (b / n).to(first.b), 1.0, first.gate)
