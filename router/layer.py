"""The routed layer: a linear module, and beside it as many experts as the pool holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from router.attach import WrappedLinear
from router.gate import Choice
from router.pool import ExpertPool, ModuleExperts


class Method(Protocol):
    """How tokens come by their experts."""

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice | None:
        """Choose experts for tokens at one module.

        Args:
            module: The experts there, in pool order.
            u: [t, d].

        Returns:
            Experts [t, k] and weights [t, k]; one row [1, k] stands for all tokens alike. None leaves
            the base as it is.
        """


class Recorder(Protocol):
    """Looks on while a model routes."""

    def record(self, path: str, module: ModuleExperts, choice: Choice, shape: torch.Size) -> None:
        """Take note of one module's choice for an activation of shape [..., d]."""


@dataclass(frozen=True)
class Plan:
    """How one request is routed, from its first token to its last."""

    pool: ExpertPool
    method: Method
    recorder: Recorder | None = None


# A request runs in one thread; another request, in another thread, has another plan.
_plan: ContextVar[Plan | None] = ContextVar("plan", default=None)


@contextmanager
def routing(plan: Plan) -> Iterator[None]:
    """Route every forward pass inside by a plan; outside there is only the base."""
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


class RoutedLinear(WrappedLinear):
    """A linear module that adds what the chosen experts contribute.

    Args:
        path: The module's path in the model, under which the pool knows it.
        linear: The base's module, frozen.
    """

    def __init__(self, path: str, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.path = path

    def forward(self, u: Tensor) -> Tensor:
        """Compute W u + sum over the chosen experts of w_z s_z B_z A_z u.

        Args:
            u: [..., d].

        Returns:
            [..., o]; bitwise the base's where no expert is chosen.
        """
        y: Tensor = self.linear(u)
        plan = _plan.get()
        module = plan.pool.modules.get(self.path) if plan else None
        if plan is None or module is None:
            return y
        tokens = u.reshape(-1, self.in_features)
        choice = plan.method.choose(module, tokens)
        if choice is None:
            return y
        if plan.recorder is not None:
            plan.recorder.record(self.path, module, choice, u.shape)
        return y + mixture(module, tokens, choice).to(y.dtype).view_as(y)


def mixture(module: ModuleExperts, u: Tensor, choice: Choice) -> Tensor:
    """Sum the chosen experts' contributions; only chosen experts are computed.

    Args:
        module: The experts at this module.
        u: [t, d].
        choice: Experts and weights, [t, k] or [1, k].

    Returns:
        [t, o] float32.
    """
    out = u.new_zeros((len(u), module.parts[0].b.shape[0]), dtype=torch.float32)
    if len(choice.experts) == 1 != len(u):
        for z, weight in zip(choice.experts[0].tolist(), choice.weights[0].tolist(), strict=True):
            part = module.parts[z]
            out += functional.linear(functional.linear(u, part.a), part.b) * (weight * part.scaling)
        return out
    # Tokens sorted by expert: one pair of matrix products for each expert that was chosen.
    order = torch.argsort(choice.experts.flatten(), stable=True)
    counts = torch.bincount(choice.experts.flatten(), minlength=len(module.parts)).tolist()
    rows = order // choice.experts.shape[1]
    weights = choice.weights.flatten()[order]
    start = 0
    for part, count in zip(module.parts, counts, strict=True):
        if count:
            mine = slice(start, start + count)
            hidden = functional.linear(u[rows[mine]], part.a)
            share = (weights[mine] * part.scaling).unsqueeze(1)
            out.index_add_(0, rows[mine], functional.linear(hidden, part.b).float() * share)
            start += count
    return out
