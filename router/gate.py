"""The maths of a gate: trained as a sigmoid, used as a routing vector.

Source: arXiv 2402.05859, section 3; trap by trap in the tests. With u an activation that enters a
linear module, W its weight, (A, B, s) an expert's LoRA module and v its gate:

    training    y = W u + s B A u * sigmoid(v . u)        v = 0 at the start, all else frozen
    routing     a_z = standardise(v_z) . standardise(u)   E = the k largest
                y = W u + sum over z in E of w_z s_z B_z A_z u,  w = softmax(a_z / sqrt(d))
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from protocol.bundle import ADAPTER_WEIGHTS
from protocol.spec import LoraModule
from protocol.tensors import ADAPTER_PREFIX
from router.attach import WrappedLinear, find_linear

EPS = 1e-5
"""Added to the variance: that of torch's LayerNorm, which the paper's code standardises with."""


def standardise(x: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation over features.

    Args:
        x: [..., d].

    Returns:
        [..., d] with mean 0 and biased variance 1 (up to `EPS`); a constant vector becomes 0.
    """
    return functional.layer_norm(x, x.shape[-1:], eps=EPS)


class Choice(NamedTuple):
    """Which experts each token is given."""

    experts: Tensor
    """[t, k] rows among the experts of a module, highest score first."""
    weights: Tensor
    """[t, k] float32, each row sums to 1."""
    hidden: Tensor | None = None
    """[t, k, r] float32, w s A u, where a GPU computed it by the way."""


class CommonChoice(NamedTuple):
    """The experts that all tokens are given alike; also those of a token that comes alone."""

    experts: list[int]
    """k rows among the experts of a module, highest score first."""
    weights: list[float]
    """k, which sum to 1."""


def scores(u: Tensor, gates: Tensor) -> Tensor:
    """Affinity of tokens and experts, always in float32.

    bfloat16 scores change the chosen pair for 0.5 to 2.8 % of tokens, so the activation is widened
    first, whatever the model computes in.

    Args:
        u: [t, d] activations that enter the module.
        gates: [n, d] float32, standardised.

    Returns:
        [t, n] dot products of standardised vectors.
    """
    return standardise(u.float()) @ gates.T


def choose(affinity: Tensor, k: int, d: int) -> Choice:
    """Take the k best experts and weigh them.

    Args:
        affinity: [t, n].
        k: Experts a token; all of them where there are fewer.
        d: Width of the module's input, for the softmax's temperature sqrt(d).

    Returns:
        Experts and weights, [t, min(k, n)]; ties go to the expert with the lowest position.
    """
    # A stable sort, since topk leaves the order of equal scores open.
    best, experts = torch.sort(affinity, dim=-1, descending=True, stable=True)
    kept = min(k, affinity.shape[-1])
    return Choice(experts[:, :kept], torch.softmax(best[:, :kept] / math.sqrt(d), dim=-1))


class GatedLora(WrappedLinear):
    """A linear module with one frozen expert and its trainable gate.

    Args:
        linear: The base's module, frozen.
        a: [r, d].
        b: [o, r].
        scaling: alpha / r.
    """

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor, scaling: float) -> None:
        super().__init__(linear.requires_grad_(requires_grad=False))
        weight = linear.weight
        self.register_buffer("a", a.to(weight), persistent=False)
        self.register_buffer("b", b.to(weight), persistent=False)
        self.scaling = scaling
        self.gate = nn.Parameter(torch.zeros(linear.in_features, dtype=torch.float32, device=weight.device))

    a: Tensor
    """[r, d] in the model's dtype."""
    b: Tensor
    """[o, r] in the model's dtype."""

    def forward(self, u: Tensor) -> Tensor:
        """Compute W u + s B A u * sigmoid(v . u).

        Args:
            u: [..., d].

        Returns:
            [..., o].
        """
        opening = torch.sigmoid(u.float() @ self.gate).unsqueeze(-1).to(u.dtype)
        return self.linear(u) + functional.linear(functional.linear(u, self.a), self.b) * (self.scaling * opening)


def attach_gates(model: nn.Module, adapter: Path, modules: Mapping[str, LoraModule]) -> dict[str, GatedLora]:
    """Put a trained expert under gates; everything else in the model is frozen.

    Args:
        model: The base model.
        adapter: Folder with PEFT's adapter_model.safetensors.
        modules: The expert's modules by path.

    Returns:
        The gated modules by path, each with one trainable parameter, `gate`.

    Raises:
        Refused: `MODULE_UNKNOWN`.
    """
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    model.requires_grad_(requires_grad=False)
    gated = {}
    for path, module in modules.items():
        prefix = f"{ADAPTER_PREFIX}{path}"
        a, b = tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]
        layer = GatedLora(find_linear(model, path), a, b, module.scaling)
        model.set_submodule(path, layer)
        gated[path] = layer
    return gated


def detach_gates(model: nn.Module, gated: Mapping[str, GatedLora]) -> None:
    """Put the plain linear modules back."""
    for path, layer in gated.items():
        model.set_submodule(path, layer.linear)
