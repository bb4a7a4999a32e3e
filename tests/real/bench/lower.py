"""What is the same for every method is computed once: layers below the experts', and what the base reads in a request.

Not a part of the product: nobody else asks the same questions twenty times.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from router.base.batching import PromptLike, read_prompts
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


def remembering_requests(model: RoutedModel) -> None:
    """Have a model remember the mean inputs of a request, which methods solve or look up."""
    reader = model.features.mixtures.reader
    read, known = reader.pooled, dict[tuple[object, ...], dict[str, Tensor]]()

    def pooled(inputs: Sequence[PromptLike], paths: Collection[str]) -> dict[str, Tensor]:
        told = tuple(paths)
        names = [(told, *prompt.tokens) for prompt in read_prompts(model.base, inputs)]
        if any(name not in known for name in names):
            found = read(inputs, told)
            known.update({name: {path: found[path][at] for path in told} for at, name in enumerate(names)})
        return {path: torch.stack([known[name][path] for name in names]) for path in told}

    vars(reader)["pooled"] = pooled


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
                key.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        name = key.digest()
        if name not in made:
            made[name] = run_all(hidden, **given)
        return made[name]

    return forward


def _passed(hidden: Tensor, **_: Any) -> Tensor:
    return hidden
