"""How close a model comes to the largest number that it can hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from router.base.linear import WrappedLinear


class Probed(NamedTuple):
    """What a model did with inputs."""

    losses: tuple[float, ...]
    """Of each input's target, in nats a token."""
    largest: float
    """The largest number on the way, as a share of the largest that its dtype holds."""

    @property
    def loss(self) -> float:
        """Mean over the inputs, in nats a token."""
        return sum(self.losses) / len(self.losses)


_KEPT = 4096
"""Shares that wait on a device before they are brought together."""


class Largest:
    """The largest number that modules were given or put out, as a share of the largest that its dtype holds."""

    def __init__(self) -> None:
        self._shares: list[Tensor] = []

    @property
    def share(self) -> float:
        """0 to 1; 1 or not a number if one was infinite or none."""
        return torch.stack([share.cpu() for share in self._shares]).max().item() if self._shares else 0.0

    def look(self, _module: nn.Module, given: tuple[Any, ...], put_out: Any) -> None:
        """See one module work; asks a GPU nothing."""
        for tensor in (*given, put_out):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
                share = tensor.detach().abs().max().double() / torch.finfo(tensor.dtype).max
                self._shares.append(share.clamp(max=1.0))
        if len(self._shares) > _KEPT:
            self._shares = [torch.stack([share.cpu() for share in self._shares]).max()]


@contextmanager
def largest_watched(model: nn.Module) -> Iterator[Largest]:
    """Look at everything that a model's innermost modules are given and put out inside, and what routing made of it."""
    largest = Largest()
    watched = [module for module in model.modules() if isinstance(module, WrappedLinear) or not any(module.children())]
    handles = [module.register_forward_hook(largest.look) for module in watched]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()
