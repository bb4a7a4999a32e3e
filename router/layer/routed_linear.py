"""The routed layer: a linear module, and beside it as many experts as the pool holds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from router.base.linear import Linear, WrappedLinear
from router.layer.batch_rows import BatchRows, inseparable
from router.layer.choice import Choice, CommonChoice
from router.layer.dispatch import add_experts
from router.layer.scaling import add_scaled
from router.pool.group_view import ModuleExperts
from router.pool.pool import ExpertPool


class Method(Protocol):
    """How tokens come by their experts."""

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice | CommonChoice | None:
        """Choose experts at one module for u [..., d], the very tensor that the module was given.

        Returns:
            Experts and weights for each token, or for all tokens alike. None leaves the base as it is.
        """


class Recorder(Protocol):
    """Looks on while a model routes."""

    def record(self, path: str, module: ModuleExperts, choice: Choice | CommonChoice, u: Tensor) -> None:
        """Take note of one module's choice for an activation u of shape [..., d]."""


@dataclass(frozen=True)
class RoutingPlan:
    """How one request is routed, from its first token to its last."""

    pool: ExpertPool
    method: Method
    recorder: Recorder | None = None

    def route(self, layer: "RoutedLinear", u: Tensor, y: Tensor) -> Tensor:
        """Add to the base's y [..., o], which is written over, what experts contribute at a layer given u [..., d]."""
        module = self.pool.modules.get(layer.path)
        if module is None:
            return y
        choice = self.method.choose(module, u)
        if choice is None:
            return y
        if self.recorder is not None:
            self.recorder.record(layer.path, module, choice, u)
        if not module.plain:
            y = add_scaled(module, layer.linear, u, choice, y)
        return add_experts(module, u, choice, y)


@dataclass(frozen=True)
class InputWatch:
    """The base alone, looked at."""

    see: Callable[[str, Tensor], None]
    """Given each module's path and its input [..., d]."""

    def route(self, layer: "RoutedLinear", u: Tensor, y: Tensor) -> Tensor:
        """Show a layer's input u [..., d], and leave y [..., o] as it is."""
        self.see(layer.path, u)
        return y


class MixedPlan:
    """A batch whose rows are routed by several plans.

    Args:
        parts: Plans, each with the number of rows that it routes; they follow one another in the batch.
    """

    def __init__(self, parts: Sequence[tuple[RoutingPlan, int]]) -> None:
        self.parts = tuple(parts)
        self._rows = BatchRows(sum(rows for _, rows in parts))
        self._u: Tensor | None = None
        self._pieces: list[Tensor] = []

    def split(self, path: str, u: Tensor) -> list[Tensor]:
        """View u, shaped as `BatchRows.entries` takes it, [..., d], part by part.

        Modules that are given one tensor are given the same views, by which a method knows siblings.

        Raises:
            Refused: As `BatchRows.entries`.
        """
        if u is not self._u:
            entries = self._rows.entries(path, u)
            self._u, self._pieces = u, list(torch.split(u, [rows * entries for _, rows in self.parts]))
        return self._pieces

    def route(self, layer: "RoutedLinear", u: Tensor, y: Tensor) -> Tensor:
        """Route each part of u [..., d] and of the base's y [..., o] by its own plan."""
        y = y.contiguous()
        pieces = self.split(layer.path, u)
        outs = torch.split(y, [len(piece) for piece in pieces])
        for (part, _), mine, out in zip(self.parts, pieces, outs, strict=True):
            routed = part.route(layer, mine, out)
            if routed is not out:
                out.copy_(routed)
        return y


class SegmentPlan:
    """A row of tokens that several requests share, each some of them, which are routed by several plans.

    Args:
        parts: Plans, each with the number of tokens that it routes; they follow one another in the row. A plan that
            comes several times is given all of its tokens at once.
    """

    def __init__(self, parts: Sequence[tuple[RoutingPlan, int]]) -> None:
        self._spans: dict[RoutingPlan, list[slice]] = {}
        self._tokens = 0
        for plan, tokens in parts:
            spans, here = self._spans.setdefault(plan, []), slice(self._tokens, self._tokens + tokens)
            if spans and spans[-1].stop == here.start:
                here = slice(spans.pop().start, here.stop)
            spans.append(here)
            self._tokens = here.stop
        self._rows: dict[RoutingPlan, Tensor] = {}
        self._u: Tensor | None = None
        self._pieces: list[Tensor] = []

    def split(self, path: str, u: Tensor) -> list[Tensor]:
        """Take u, [1, t, d] or [t, d], apart: for each plan [1, tokens, d], in the order in which plans come first.

        Modules that are given one tensor are given the same pieces, by which a method knows siblings.

        Raises:
            Refused: `REQUEST_INVALID` if it is not all of the row's tokens.
        """
        if u is not self._u:
            if u.shape[:-1].numel() != self._tokens:
                raise inseparable(path)
            row = u.reshape(1, self._tokens, -1)
            self._u, self._pieces = u, [self._taken(plan, row) for plan in self._spans]
        return self._pieces

    def route(self, layer: "RoutedLinear", u: Tensor, y: Tensor) -> Tensor:
        """Route each plan's tokens of u [1, t, d] and of the base's y [1, t, o]."""
        y = y.contiguous()
        row = y.view(1, -1, y.shape[-1])
        for plan, mine in zip(self._spans, self.split(layer.path, u), strict=True):
            out = self._taken(plan, row)
            routed = plan.route(layer, mine, out)
            if plan in self._rows:
                row[:, self._rows[plan]] = routed
            elif routed is not out:
                out.copy_(routed)
        return y

    def _taken(self, plan: RoutingPlan, row: Tensor) -> Tensor:
        """Take a plan's tokens out of a row [1, t, d]: a view where they stand together."""
        spans = self._spans[plan]
        if len(spans) == 1:
            return row[:, spans[0]]
        if plan not in self._rows:
            places = [place for span in spans for place in range(span.start, span.stop)]
            self._rows[plan] = torch.tensor(places, device=row.device)
        return row[:, self._rows[plan]]


# A request runs in one thread; another request, in another thread, has another plan.
_plan: ContextVar[RoutingPlan | MixedPlan | SegmentPlan | InputWatch | None] = ContextVar("plan", default=None)


@contextmanager
def routing(plan: RoutingPlan | MixedPlan | SegmentPlan | InputWatch) -> Iterator[None]:
    """Route every forward pass inside by a plan, or only look on; outside there is only the base."""
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
        """Compute W u + b + sum over the chosen experts of w_z delta_z(u), [..., o], for u [..., d].

        Where no expert is chosen it is bitwise the base's.
        """
        y = self._base(u)
        plan = _plan.get()
        return y if plan is None else plan.route(self, u, y)

    def _base(self, u: Tensor) -> Tensor:
        """Compute W u + b for u [..., d], without a torch module's call, which costs a token more than a small product.

        A linear module of another class, or one that somebody hooked or patched, is called as ever.
        """
        linear = self._modules["linear"]
        own = linear.__dict__
        if linear.__class__ is nn.Linear and not (
            own["_forward_pre_hooks"] or own["_forward_hooks"] or "forward" in own
        ):
            parameters = own["_parameters"]
            return functional.linear(u, parameters["weight"], parameters["bias"])
        y: Tensor = linear(u)  # type: ignore[misc]
        return y
