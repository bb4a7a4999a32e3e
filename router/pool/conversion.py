"""From a bundle's tensors to an expert that runs: every kind becomes a case of one formula.

    delta(u) = s B f(A u) + W (c * u) + e * y + h,   y = W u + b

The kinds as their papers and PEFT define them stand in `protocol.adapters`. DoRA reads

    delta(u) = (g - 1) * (y - b) + g * s B A u,   g = m / |W + s B A| by rows

so that g, which depends on the base alone, is worked out once: B becomes diag(g) B, e = g - 1 and h = -e * b.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from protocol.adapters import BottleneckModule, DoraModule, Ia3Module, Module
from protocol.errors import Code, Refused
from router.base.linear import Linear, bias_of, weight_of
from router.pool.expert_module import ExpertModule, Scales


def make_expert_module(
    path: str, module: Module, tensors: Mapping[str, Tensor], linear: Linear, gate: Tensor, like: Tensor
) -> ExpertModule:
    """Make one expert ready to run at the module of a path.

    Args:
        path: For people.
        module: What the spec says of it.
        tensors: Its tensors, under the names and of the shapes that `Module.tensors` gives.
        linear: The base's module.
        gate: [d] float32.
        like: [0], of the device and dtype that the model computes in.

    Raises:
        Refused: `NOT_FINITE` for DoRA over a row of a length near zero, `KIND_UNSUPPORTED` for DoRA over weights
            that cannot be read.
    """
    match module:
        case DoraModule():
            return _dora(path, module, tensors, linear, gate, like)
        case Ia3Module(side=side):
            vector = tensors["ia3_l"].flatten().to(like.device, torch.float32) - 1
            scales = Scales(inner=vector) if side == "input" else Scales(outer=vector)
            a, b = like.new_empty(0, module.d_in), like.new_empty(module.d_out, 0)
            return ExpertModule(a, b, 1.0, gate, scales=scales)
        case BottleneckModule(activation=activation):
            down, up = (tensors[name].to(like) for name in module.tensors)
            return ExpertModule(down, up, module.scaling, gate, activation)
        case _:
            a, b = (tensors[name].to(like) for name in module.tensors)
            return ExpertModule(a, b, module.scaling, gate)


def _dora(
    path: str, module: DoraModule, tensors: Mapping[str, Tensor], linear: Linear, gate: Tensor, like: Tensor
) -> ExpertModule:
    a, b, m = (tensors[name].to(like.device, torch.float32) for name in module.tensors)
    directions = torch.addmm(weight_of(linear, path), b, a, alpha=module.scaling)
    g = m / torch.linalg.vector_norm(directions, dim=1)
    folded = (b * g.unsqueeze(1)).to(like)
    if not (g.isfinite().all() and folded.isfinite().all()):
        raise Refused(
            Code.NOT_FINITE,
            f"At {path} a DoRA expert's magnitudes have no direction: a row of W + s B A has a length near zero.",
            "Train it again, or leave that module out.",
        )
    e, bias = g - 1, bias_of(linear)
    h = None if bias is None else -e * bias.float()
    return ExpertModule(a.to(like), folded, module.scaling, gate, scales=Scales(outer=e, shift=h))
