"""A bottleneck adapter beside a linear module, while it is trained.

Source: J. He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv 2110.04366, the
parallel form. PEFT has no such tuner.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from protocol.adapters import BottleneckModule
from protocol.bundle import ADAPTER_WEIGHTS
from protocol.tensors import ADAPTER_PREFIX
from router.base.linear import Linear, WrappedLinear, device_of, find_linear
from router.pool.expert_module import activated


class Bottleneck(WrappedLinear):
    """A linear module and a trainable adapter, which adds nothing at first.

    Args:
        linear: The base's module, frozen.
        module: Widths, scaling and activation.
    """

    def __init__(self, linear: Linear, module: BottleneckModule) -> None:
        super().__init__(linear.requires_grad_(requires_grad=False))
        self.module = module
        device = device_of(linear)
        # In float32 whatever the base computes in, and begun as PEFT begins A and B.
        self.down = nn.Parameter(torch.empty(module.rank, module.d_in, device=device))
        self.up = nn.Parameter(torch.zeros(module.d_out, module.rank, device=device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, u: Tensor) -> Tensor:
        """Compute W u + b + s U f(D u), [..., o], for u [..., d]."""
        y = self.linear(u)
        hidden = activated(functional.linear(u.to(self.down.dtype), self.down), self.module.activation)
        return y + (functional.linear(hidden, self.up) * self.module.scaling).to(y.dtype)


def attach_bottlenecks(model: nn.Module, modules: Mapping[str, BottleneckModule]) -> dict[str, Bottleneck]:
    """Put an adapter beside linear modules, which it returns with them.

    Raises:
        Refused: `MODULE_UNKNOWN`.
    """
    placed = {}
    for path, module in modules.items():
        placed[path] = Bottleneck(find_linear(model, path), module)
        model.set_submodule(path, placed[path])
    return placed


def detach_bottlenecks(model: nn.Module, placed: Mapping[str, Bottleneck]) -> None:
    """Put the plain linear modules back."""
    for path, layer in placed.items():
        model.set_submodule(path, layer.linear)


def save_bottlenecks(placed: Mapping[str, Bottleneck], folder: Path) -> None:
    """Write the adapters' tensors into a folder."""
    tensors = {}
    for path, layer in placed.items():
        tensors[f"{ADAPTER_PREFIX}{path}.adapter_down.weight"] = layer.down.detach().cpu().contiguous()
        tensors[f"{ADAPTER_PREFIX}{path}.adapter_up.weight"] = layer.up.detach().cpu().contiguous()
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
