"""Kinds of experts: what one of them adds to one linear module of the base.

With W and b the module's weight and bias and u [d_in] what enters it, an expert adds delta(u) to W u + b:

    lora        s B A u                               s = alpha / rank          arXiv 2106.09685
    rslora      s B A u                               s = alpha / sqrt(rank)    arXiv 2312.03732
    dora        (g - 1) * W u + g * s B A u           s = alpha / rank,         arXiv 2402.09353
                                                      g = m / |W + s B A| by rows
    ia3         (l - 1) * (W u + b)  on the output    l alone is learnt         arXiv 2205.05638
                W ((l - 1) * u)      on the input
    bottleneck  s U f(D u)                            s = alpha / rank,         arXiv 2110.04366
                                                      f is ReLU or GELU (by erf)

All but the last are PEFT's, and so are their files. PEFT has no such tuner as the last, so plain PEFT does
not load it: its adapter_config.json names a type of ours, at which PEFT stops.
"""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from protocol.statement import Strict

BOTTLENECK_TYPE = "GREYLAG_BOTTLENECK"
"""`peft_type` of bottleneck adapters."""
Kind = Literal["lora", "rslora", "dora", "ia3", "bottleneck"]
Activation = Literal["relu", "gelu"]
Rank = Annotated[int, Field(ge=1, le=1024)]
Alpha = Annotated[float, Field(gt=0, le=4096)]


class Shape(Strict):
    """Width of a linear module."""

    d_in: Annotated[int, Field(ge=1, le=1 << 20)]
    d_out: Annotated[int, Field(ge=1, le=1 << 20)]


class _LowRank(Shape):
    rank: Rank
    alpha: Alpha

    @property
    def scaling(self) -> float:
        """The factor alpha / r, written s in the formulas."""
        return self.alpha / self.rank

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the module's tensors, by the end of the name under which PEFT writes them."""
        return {"lora_A.weight": (self.rank, self.d_in), "lora_B.weight": (self.d_out, self.rank)}


class LoraModule(_LowRank):
    """LoRA: A [rank, d_in], B [d_out, rank]."""

    kind: Literal["lora"] = "lora"


class RsLoraModule(_LowRank):
    """Rank-stabilised LoRA: A [rank, d_in], B [d_out, rank]."""

    kind: Literal["rslora"] = "rslora"

    @property
    def scaling(self) -> float:
        """The factor alpha / sqrt(r)."""
        return self.alpha / math.sqrt(self.rank)


class DoraModule(_LowRank):
    """Weight-decomposed LoRA: A [rank, d_in], B [d_out, rank], magnitudes m [d_out]."""

    kind: Literal["dora"] = "dora"

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """As LoRA's, and the magnitudes."""
        return super().tensors | {"lora_magnitude_vector": (self.d_out,)}


class Ia3Module(Shape):
    """(IA)3: one vector l, [d_out] or [d_in]."""

    kind: Literal["ia3"] = "ia3"
    rank: ClassVar[int] = 0
    side: Literal["output", "input"]
    """What the vector scales; PEFT calls a module whose input is scaled a feed-forward module."""

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """A column where outputs are scaled, a row where inputs are."""
        return {"ia3_l": (self.d_out, 1) if self.side == "output" else (1, self.d_in)}


class BottleneckModule(_LowRank):
    """Parallel adapter: down D [rank, d_in], up U [d_out, rank], no biases."""

    kind: Literal["bottleneck"] = "bottleneck"
    activation: Activation

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names of our own."""
        return {"adapter_down.weight": (self.rank, self.d_in), "adapter_up.weight": (self.d_out, self.rank)}


Module = Annotated[LoraModule | RsLoraModule | DoraModule | Ia3Module | BottleneckModule, Field(discriminator="kind")]
