"""Mean inputs of modules: what Average Activation takes for gates."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from router.attach import reads_input
from router.base import Base
from router.text import IGNORED


def mean_inputs(base: Base, paths: Sequence[str], batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average what enters modules over examples, each example counting as much as any other.

    A decoder-only base reads prompts alone: their means are what a request can be compared with, tell nothing of the
    answers, and route better than those of whole rows. The decoder of an encoder-decoder is teacher-forced: it reads
    the targets, all positions of them at once. The code of arXiv 2402.05859 lets the model write instead, and keeps the
    last step alone, which makes its decoder's means weaker. No expert takes part.

    Args:
        base: The base model.
        paths: Modules.
        batches: input_ids, attention_mask and labels, each [b, s].

    Returns:
        [d] by path, float32; summed in float64.
    """
    sums: dict[str, Tensor] = {}
    masks: dict[bool, Tensor] = {}

    def add(_module: nn.Module, inputs: tuple[Tensor, ...], *, path: str) -> None:
        mask = masks[base.architecture == "decoder-only" or reads_input(path)]
        u = inputs[0].float().view(*mask.shape, -1)
        means = (u * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        sums[path] = sums.get(path, 0) + means.double().sum(0)

    examples = 0
    hooks = [base.model.get_submodule(path).register_forward_pre_hook(partial(add, path=path)) for path in paths]
    try:
        with torch.inference_mode():
            for given in batches:
                batch = {name: tensor.to(base.model.device) for name, tensor in given.items()}
                read, written = batch["attention_mask"].float(), (batch["labels"] != IGNORED).float()
                # A decoder-only base is given both in one row.
                prompt = read - written if base.architecture == "decoder-only" else read
                masks = {True: prompt, False: written}
                base.model(**batch)
                examples += len(batch["input_ids"])
    finally:
        for hook in hooks:
            hook.remove()
    return {path: (total / examples).float().cpu() for path, total in sums.items()}
