"""The routed layer: a linear module, and beside it as many experts as the pool holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from router.attach import Linear, WrappedLinear
from router.dispatch import add_experts
from router.gate import Choice, CommonChoice
from router.pool import ExpertPool, ModuleExperts
from router.scale import add_scaled


class Method(Protocol):
    """How tokens come by their experts."""

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice | CommonChoice | None:
        """Choose experts for tokens at one module.

        Args:
            module: The experts there.
            u: [..., d], the very tensor that the module was given.

        Returns:
            Experts and weights for each token, or for all tokens alike. None leaves the base as it is.
        """


class Recorder(Protocol):
    """Looks on while a model routes."""

    def record(self, path: str, module: ModuleExperts, choice: Choice | CommonChoice, shape: torch.Size) -> None:
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

    def __init__(self, path: str, linear: Linear) -> None:
        super().__init__(linear)
        self.path = path

    def forward(self, u: Tensor) -> Tensor:
        """Compute W u + b + sum over the chosen experts of w_z delta_z(u).

        Args:
            u: [..., d].

        Returns:
            [..., o]; bitwise the base's where no expert is chosen.
        """
        # Not by attribute, whose look-up in a torch module costs a token as much as a small product.
        y: Tensor = self._modules["linear"](u)  # type: ignore[misc]
        plan = _plan.get()
        if plan is None:
            return y
        module = plan.pool.modules.get(self.path)
        if module is None:
            return y
        choice = plan.method.choose(module, u)
        if choice is None:
            return y
        if plan.recorder is not None:
            plan.recorder.record(self.path, module, choice, u.shape)
        if not module.plain:
            y = add_scaled(module, self.linear, u, choice, y)
        return add_experts(module, u, choice, y)
