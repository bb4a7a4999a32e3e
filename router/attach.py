"""Which modules of a transformer an expert may touch, and what takes their place."""

import re
from typing import TYPE_CHECKING

from torch import Tensor, nn

from protocol.errors import Code, Refused
from protocol.spec import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Cross-attention's k and v read what the encoder wrote, although they stand in the decoder
# (T5 and UL2: EncDecAttention; BART, Pegasus, Whisper and others: encoder_attn).
_READS_ENCODER = re.compile(r"(^|\.)encoder\.|\.(EncDecAttention|encoder_attn|crossattention)\.(k|v|k_proj|v_proj)$")


# Names of modules that a block calls on one and the same tensor (T5, UL2; Llama, Mistral, Qwen).
_SIBLINGS = (("q", "k", "v"), ("wi_0", "wi_1"), ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class WrappedLinear(nn.Module):
    """A linear module with something beside it; passes for the module that it wraps.

    T5's feed-forward looks at `wo.weight.dtype`, so the weight must be seen from outside.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def weight(self) -> Tensor:
        """[o, d], the base's."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """[o] or None, the base's."""
        return self.linear.bias


def reads_input(path: str) -> bool:
    """Tell whether a module of an encoder-decoder sees the input's tokens (else the output's)."""
    return _READS_ENCODER.search(path) is not None


def shared_input(path: str) -> tuple[str, ...]:
    """Name the modules that read the same input as a module, itself among them.

    A guess from names, good for speed only: the layer sees for itself which input a module is given.
    """
    parent, dot, name = path.rpartition(".")
    for siblings in _SIBLINGS:
        if name in siblings:
            # In cross-attention q reads the decoder, k and v the encoder.
            family = [f"{parent}{dot}{other}" for other in siblings]
            return tuple(other for other in family if reads_input(other) == reads_input(path))
    return (path,)


def linear_modules(model: "PreTrainedModel") -> dict[str, Shape]:
    """List every linear module that an expert may touch: all but the language model's head.

    The same set as PEFT's "all-linear": for T5 q, k, v, o and wi*, wo of every block (arXiv
    2402.05859, section 4.1), for Llama q, k, v, o, gate, up, down.

    Returns:
        Shapes by module path, in the model's order.
    """
    head = model.get_output_embeddings()
    return {
        path: Shape(d_in=module.in_features, d_out=module.out_features)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def find_linear(model: nn.Module, path: str) -> nn.Linear:
    """Look a linear module up by its path.

    Raises:
        Refused: `MODULE_UNKNOWN` if there is none, or if it is not linear.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise Refused(
            Code.MODULE_UNKNOWN,
            f"The base model has no linear module {path}.",
            "Use the base model that the expert was trained on.",
        )
    return module
