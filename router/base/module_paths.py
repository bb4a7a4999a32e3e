"""Names of linear modules: which read the same input, which read the encoder, and in which layer they stand."""

import re
from collections.abc import Iterable

# Cross-attention's k and v read what the encoder wrote, although they stand in the decoder
# (T5 and UL2: EncDecAttention; BART, Pegasus, Whisper and others: encoder_attn; T5Gemma and ProphetNet: cross_attn).
_READS_ENCODER = re.compile(
    r"(^|\.)encoder\.|\.(EncDecAttention|encoder_attn|cross_?attn|cross_?attention)\.(self\.)?(k|v|key|value)(_proj)?$"
)


_LAYER = re.compile(r"(.*?)\.(\d+)\.")


# Names of modules that a block calls on one and the same tensor (T5, UL2; Llama, Mistral, Qwen).
_SIBLINGS = (("q", "k", "v"), ("wi_0", "wi_1"), ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def reads_input(path: str) -> bool:
    """Tell whether a module of an encoder-decoder sees the input's tokens (else the output's)."""
    return _READS_ENCODER.search(path) is not None


def shared_input(path: str) -> tuple[str, ...]:
    """Name the modules that read the same input as a module, itself among them.

    A guess from names: the layer sees for itself which input a module is given, and a pool lets only modules of
    one width share what it keeps.
    """
    parent, dot, name = path.rpartition(".")
    for siblings in _SIBLINGS:
        if name in siblings:
            # In cross-attention q reads the decoder, k and v the encoder.
            family = [f"{parent}{dot}{other}" for other in siblings]
            return tuple(other for other in family if reads_input(other) == reads_input(path))
    return (path,)


def deeper(paths: Iterable[str]) -> list[str]:
    """Keep the modules of the deeper half of each stack's layers, by the first number in a path.

    What enters a first layer is words; what enters later ones is more of what they mean together.
    """
    layers = _layers(paths)
    depth: dict[str, int] = {}
    for stack, number in layers.values():
        depth[stack] = max(depth.get(stack, 0), number + 1)
    return [path for path, (stack, number) in layers.items() if 2 * number + 1 >= depth[stack]]


def in_layers(paths: Iterable[str], first: int, last: int) -> list[str]:
    """Keep the modules of some layers, both ends among them; the numbers hold in each stack."""
    return [path for path, (_, number) in _layers(paths).items() if first <= number <= last]


def numbers(paths: Iterable[str]) -> list[int]:
    """List the layers that modules stand in, lowest first, counted from 0 in each stack."""
    return sorted({number for _, number in _layers(paths).values()})


def _layers(paths: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Tell stack and layer of each module that stands in one."""
    return {path: (found[1], int(found[2])) for path in paths if (found := _LAYER.match(path))}
