"""An expert under trainable gates, for as long as gates are trained: frozen, or in training itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from protocol.adapters import Module
from protocol.bundle import ADAPTER_WEIGHTS
from protocol.tensors import ADAPTER_PREFIX
from router.base.linear import Linear, WrappedLinear, computing_like, device_of, find_linear
from router.pool.conversion import make_expert_module
from router.pool.expert_module import ExpertModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GatedLinear(WrappedLinear):
    """A linear module whose expert stands under a trainable gate: W u + b + delta(u) * sigmoid(v . u), v = 0 at first.

    Args:
        linear: The base's module, frozen.
    """

    def __init__(self, linear: Linear) -> None:
        super().__init__(linear.requires_grad_(requires_grad=False))
        self.gate = nn.Parameter(torch.zeros(self.in_features, dtype=torch.float32, device=device_of(linear)))

    def opening(self, u: Tensor) -> Tensor:
        """Compute sigmoid(v . u), [...] float32, for u [..., d]."""
        return torch.sigmoid(u.float() @ self.gate)


class GatedExpert(GatedLinear):
    """A linear module with one frozen expert and its trainable gate.

    Args:
        linear: The base's module, frozen.
        part: The expert there; its gate is not used.
    """

    def __init__(self, linear: Linear, part: ExpertModule) -> None:
        super().__init__(linear)
        self.part = part

    def forward(self, u: Tensor) -> Tensor:
        """Compute [..., o] from u [..., d]."""
        y, part = self.linear(u), self.part
        opening = self.opening(u).unsqueeze(-1).to(u.dtype)
        if part.plain:
            # A token's opening is one number: it costs least where the expert is narrow.
            hidden = functional.linear(u, part.a) * (opening * part.scaling)
            return y + functional.linear(hidden, part.b).to(y.dtype)
        return y + part.delta(u, y, self.linear) * opening


class GatedTuner(GatedLinear):
    """A linear module whose expert is trained together with its gate.

    Args:
        linear: The base's module, frozen.
        tuned: What stands in its place while the expert is trained, and adds the expert to it.
    """

    def __init__(self, linear: Linear, tuned: nn.Module) -> None:
        super().__init__(linear)
        self.tuned = tuned

    def forward(self, u: Tensor) -> Tensor:
        """Compute [..., o] from u [..., d]."""
        y = self.linear(u)
        return y + (self.tuned(u) - y) * self.opening(u).unsqueeze(-1).to(y.dtype)


def attach_gates(model: "PreTrainedModel", adapter: Path, modules: Mapping[str, Module]) -> dict[str, GatedExpert]:
    """Put a trained expert, from a folder with adapter_model.safetensors, under gates; all else is frozen.

    Returns:
        The gated modules by path, each with one trainable parameter, `gate`.

    Raises:
        Refused: `MODULE_UNKNOWN`, and as `make_expert_module`.
    """
    found = load_file(adapter / ADAPTER_WEIGHTS)
    model.requires_grad_(requires_grad=False)
    gated = {}
    for path, module in modules.items():
        linear = find_linear(model, path)
        like = computing_like(linear, model.dtype)
        tensors = {name: found[f"{ADAPTER_PREFIX}{path}.{name}"] for name in module.tensors}
        part = make_expert_module(path, module, tensors, linear, like.new_zeros(module.d_in), like)
        gated[path] = GatedExpert(linear, part)
        model.set_submodule(path, gated[path])
    return gated


def gate_tuners(model: "PreTrainedModel", linears: Mapping[str, Linear]) -> dict[str, GatedTuner]:
    """Put an expert that is on a model, and in training, under gates that learn with it.

    It stands at the paths of `linears`, the base's own modules.
    """
    gated = {}
    for path, linear in linears.items():
        gated[path] = GatedTuner(linear, model.get_submodule(path))
        model.set_submodule(path, gated[path])
    return gated


def detach_gates(model: nn.Module, gated: Mapping[str, GatedLinear]) -> None:
    """Put back what stood there before the gates."""
    for path, layer in gated.items():
        model.set_submodule(path, layer.tuned if isinstance(layer, GatedTuner) else layer.linear)
