"""Which way to compute: found out once for each kind of work, on the first of its kind (`router.layer.autotune`)."""

from functools import partial

import torch
from torch import Tensor

from router.layer import experts_cpu, experts_gpu
from router.layer.autotune import autotuner
from router.layer.choice import Choice, CommonChoice
from router.pool.group_view import ModuleExperts

_FEW_TOKENS = 8
_FEW_RANKS = 1024
"""Ranks of all experts together up to which computing all of them may pay."""
_ALIGNED_BYTES = 16
"""Row length that torch's grouped product asks for, and the dtypes that it takes."""
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_IN_PLACE_EXPERTS = 4
"""More than these are summed on their own first: y is large against each of them and would round them off."""


def dispatch(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Add what the experts of a choice [t, k] make of u [t, d] to y [t, o] in place, the quickest way."""
    ways = offered(module, u)
    kind = (u.dtype, u.shape[1], y.shape[1], len(u).bit_length(), len(module).bit_length(), tuple(ways))
    name = autotuner.known.get(kind)
    if name is None and u.is_cuda and torch.cuda.is_current_stream_capturing():
        # Nothing can be timed in here. Whoever captures runs the model first, which settles it as a rule.
        name = next(iter(ways))
    if name is None:
        scratch = torch.zeros_like(y)
        calls = {name: partial(way, module, u, choice, scratch) for name, way in ways.items()}
        name = autotuner.settle(kind, calls, u)
    ways[name](module, u, choice, y)


def offered(module: ModuleExperts, u: Tensor) -> dict[str, experts_cpu.Way]:
    """List by name the ways that can serve inputs u [t, d]."""
    if u.is_cuda:
        return experts_gpu.offered(module, u)
    ways: dict[str, experts_cpu.Way] = {"sorted": experts_cpu.add_sorted}
    if len(u) <= _FEW_TOKENS:
        ways["one by one"] = experts_cpu.add_one_by_one
    shapes = module.shapes
    # Places of experts that are hidden are in the pages still.
    if not module.group.hidden and len(module) * shapes.rank <= _FEW_RANKS:
        ways["concatenated"] = experts_cpu.add_concatenated
    if u.dtype in _GROUPED_DTYPES and shapes.step_bytes % _ALIGNED_BYTES == 0 and not shapes.bare:
        ways["grouped"] = experts_cpu.add_grouped
    return ways


def add_experts(module: ModuleExperts, u: Tensor, choice: Choice | CommonChoice, y: Tensor) -> Tensor:
    """Add what the chosen experts' factors make of u [..., d] to the base's output.

    Nothing here is differentiable: gates are trained in `router.training.gated_linear`.

    Args:
        module: The experts at the module.
        u: [..., d].
        choice: Experts and weights.
        y: [..., o], the base's; written over.

    Returns:
        [..., o].
    """
    o = y.shape[-1]
    in_place = y.dtype == torch.float32
    if isinstance(choice, CommonChoice):
        in_place &= len(choice.experts) <= _IN_PLACE_EXPERTS
        if in_place and y.numel() == o and module.plain:
            experts_cpu.add_one(module, u.reshape(-1), choice, y.view(o))
            return y
    else:
        in_place |= y.is_cuda
    y = y.contiguous()
    tokens, rows = u.reshape(-1, u.shape[-1]), y.view(-1, o)
    total = rows if in_place else torch.zeros_like(rows, dtype=torch.float32)
    if isinstance(choice, CommonChoice):
        experts_cpu.add_common(module, tokens, choice, total)
    elif choice.hidden is None:
        dispatch(module, tokens, choice, total)
    else:
        experts_gpu.add_rows(module, tokens, choice, total)
    if not in_place:
        rows += total
    return y
