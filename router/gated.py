"""One frozen expert under trainable gates, for as long as gates are trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from protocol.bundle import ADAPTER_WEIGHTS
from protocol.kinds import Module
from protocol.tensors import ADAPTER_PREFIX
from router.attach import Linear, WrappedLinear, computing_like, find_linear
from router.kinds import make_part
from router.part import ExpertModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GatedExpert(WrappedLinear):
    """A linear module with one frozen expert and its trainable gate.

    Args:
        linear: The base's module, frozen.
        part: The expert there; its gate is not used.
    """

    def __init__(self, linear: Linear, part: ExpertModule) -> None:
        super().__init__(linear.requires_grad_(requires_grad=False))
        self.part = part
        self.gate = nn.Parameter(torch.zeros(self.in_features, dtype=torch.float32, device=part.a.device))

    def forward(self, u: Tensor) -> Tensor:
        """Compute W u + b + delta(u) * sigmoid(v . u).

        Args:
            u: [..., d].

        Returns:
            [..., o].
        """
        y, part = self.linear(u), self.part
        opening = self.opening(u).unsqueeze(-1).to(u.dtype)
        if part.plain:
            # A token's opening is one number: it costs least where the expert is narrow.
            hidden = functional.linear(u, part.a) * (opening * part.scaling)
            return y + functional.linear(hidden, part.b).to(y.dtype)
        return y + part.delta(u, y, self.linear) * opening

    def opening(self, u: Tensor) -> Tensor:
        """Compute sigmoid(v . u).

        Args:
            u: [..., d].

        Returns:
            [...] float32, 0 to 1.
        """
        return torch.sigmoid(u.float() @ self.gate)


def attach_gates(model: "PreTrainedModel", adapter: Path, modules: Mapping[str, Module]) -> dict[str, GatedExpert]:
    """Put a trained expert under gates; everything else in the model is frozen.

    Args:
        model: The base model.
        adapter: Folder with adapter_model.safetensors.
        modules: The expert's modules by path.

    Returns:
        The gated modules by path, each with one trainable parameter, `gate`.

    Raises:
        Refused: `MODULE_UNKNOWN`, and as `make_part`.
    """
    found = load_file(adapter / ADAPTER_WEIGHTS)
    model.requires_grad_(requires_grad=False)
    gated = {}
    for path, module in modules.items():
        linear = find_linear(model, path)
        like = computing_like(linear, model.dtype)
        tensors = {name: found[f"{ADAPTER_PREFIX}{path}.{name}"] for name in module.tensors}
        part = make_part(path, module, tensors, linear, like.new_zeros(module.d_in), like)
        gated[path] = GatedExpert(linear, part)
        model.set_submodule(path, gated[path])
    return gated


def detach_gates(model: nn.Module, gated: Mapping[str, GatedExpert]) -> None:
    """Put the plain linear modules back."""
    for path, layer in gated.items():
        model.set_submodule(path, layer.linear)
