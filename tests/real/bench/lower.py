"""Layers below the experts' are the same for every method, so the bench computes them once a batch.

Not a part of the product: nobody else asks the same questions twenty times.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from router.model.routed_model import RoutedModel

Run = Callable[..., Tensor]


def remembering(model: RoutedModel, first: int) -> None:
    """Have a decoder-only model remember what its layers before the first that experts touch make of a batch.

    Nothing may be generated with it after that: what a cache would hold of those layers is not there.
    """
    layers = getattr(model.base.model.base_model, "layers", None)
    if not first or not isinstance(layers, nn.ModuleList):
        return
    lower = list(layers)[:first]
    # The modules stay where they are; what they are called by is another thing.
    vars(lower[0])["forward"] = _remembered([layer.forward for layer in lower])
    for layer in lower[1:]:
        vars(layer)["forward"] = _passed


def _remembered(run: list[Run]) -> Run:
    made: dict[bytes, Tensor] = {}

    def run_all(hidden: Tensor, **given: Any) -> Tensor:
        for layer in run:
            hidden = layer(hidden, **given)
        return hidden

    def forward(hidden: Tensor, **given: Any) -> Tensor:
        """Run the layers over hidden states [b, s, d], or remember what came of them."""
        if given.get("past_key_values") is None:
            # Statistics are read without a cache, by looking at what enters every module.
            return run_all(hidden, **given)
        key = hashlib.sha256(str(hidden.shape).encode())
        for tensor in (hidden, given.get("attention_mask"), given.get("position_ids")):
            if isinstance(tensor, Tensor):
                key.update(tensor.contiguous().numpy().tobytes())
        name = key.digest()
        if name not in made:
            made[name] = run_all(hidden, **given)
        return made[name]

    return forward


def _passed(hidden: Tensor, **_: Any) -> Tensor:
    return hidden
