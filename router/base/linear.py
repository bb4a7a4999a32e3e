"""Which modules of a transformer an expert may touch, and what takes their place."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from protocol.adapters import Shape
from protocol.errors import Code, Refused

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Linear: TypeAlias = nn.Linear | Conv1D
"""What an expert may touch. GPT-2 keeps its weights the other way round, in modules that it calls Conv1D;
bitsandbytes' quantised modules are subclasses of torch's."""


class WrappedLinear(nn.Module):
    """A linear module with something beside it; passes for the module that it wraps.

    T5's feed-forward looks at `wo.weight.dtype`, so the weight must be seen from outside.
    """

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear
        widths = shape(linear)
        self.in_features, self.out_features = widths.d_in, widths.d_out

    @property
    def weight(self) -> Tensor:
        """The base's: [o, d], or [d, o] for GPT-2."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """[o] or None, the base's."""
        return self.linear.bias


def linear_modules(model: "PreTrainedModel") -> dict[str, Shape]:
    """List every linear module that an expert may touch, by path: all but the language model's head.

    The same set as PEFT's "all-linear": for T5 q, k, v, o and wi*, wo of every block (arXiv
    2402.05859, section 4.1), for Llama q, k, v, o, gate, up, down.
    """
    head = model.get_output_embeddings()
    linears = {path: module for path, module in model.named_modules() if isinstance(module, Linear)}
    return {path: shape(linear) for path, linear in linears.items() if linear is not head}


def shape(linear: Linear) -> Shape:
    """Return the widths of a linear module."""
    if isinstance(linear, Conv1D):
        return Shape(d_in=linear.nx, d_out=linear.nf)
    return Shape(d_in=linear.in_features, d_out=linear.out_features)


def computing_like(linear: Linear, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor [0] of the device and dtype that a linear module computes with.

    That of the model, `dtype`, is for quantised weights, which do not say.
    """
    weight = linear.weight
    return torch.empty(0, device=device_of(linear), dtype=weight.dtype if weight.is_floating_point() else dtype)


def weight_of(linear: Linear, path: str) -> Tensor:
    """Read the weight of the linear module at a path, in whatever form it is kept.

    Returns:
        [o, d] float32 on the module's device; what a quantised module computes with.

    Raises:
        Refused: `KIND_UNSUPPORTED` if the weight is of a form that cannot be read.
    """
    weight, widths = _at_hand(linear, linear.weight, "weight"), shape(linear)
    if not weight.is_floating_point():
        # Imports bitsandbytes, which a base that is not quantised does without.
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight  # noqa: PLC0415

        weight = dequantize_bnb_weight(weight, getattr(linear, "state", None))
    if isinstance(linear, Conv1D):
        weight = weight.T
    if weight.is_meta or not weight.is_floating_point() or weight.shape != (widths.d_out, widths.d_in):
        raise Refused(
            Code.KIND_UNSUPPORTED,
            f"A DoRA expert needs the base's weights at {path}; found {list(weight.shape)} of {weight.dtype} on "
            f"{weight.device}.",
            "Load the base quantised with bitsandbytes or not at all.",
        )
    return weight.float()


def bias_of(linear: Linear) -> Tensor | None:
    """Read the bias [o] of a linear module where it computes; None if it has none."""
    bias = linear.bias
    return bias if bias is None else _at_hand(linear, bias, "bias")


def _at_hand(linear: Linear, parameter: Tensor, name: str) -> Tensor:
    """Fetch one of a module's parameters to where the module computes, if it lies elsewhere."""
    if not parameter.is_meta:
        return parameter
    from accelerate.utils import align_module_device  # noqa: PLC0415 - seconds of import

    with align_module_device(linear):
        fetched: Tensor = getattr(linear, name)
        return fetched


def find_linear(model: nn.Module, path: str) -> Linear:
    """Look a linear module up by its path.

    Raises:
        Refused: `MODULE_UNKNOWN` if there is none, or if it is not linear.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if not isinstance(module, Linear):
        raise Refused(
            Code.MODULE_UNKNOWN,
            f"The base model has no linear module {path}.",
            "Use the base model that the expert was trained on.",
        )
    return module


def device_of(linear: Linear) -> torch.device:
    """Tell where a linear module computes."""
    where = getattr(getattr(linear, "_hf_hook", None), "execution_device", None)
    return torch.device(where) if linear.weight.is_meta and where is not None else linear.weight.device


@contextmanager
def seeming_at_hand(linears: Iterable[Linear]) -> Iterator[None]:
    """Have weights that are elsewhere seem to lie where their modules compute: there PEFT puts an adapter."""
    away = {linear: linear.weight for linear in linears if linear.weight.is_meta}
    for linear, weight in away.items():
        seeming = weight.new_empty(1, device=device_of(linear)).expand(weight.shape)
        linear.weight = nn.Parameter(seeming, requires_grad=False)
    try:
        yield
    finally:
        for linear, weight in away.items():
            linear.weight = weight
