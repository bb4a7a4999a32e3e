"""Mean inputs of modules: what Average Activation takes for gates."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from router.base.batching import masked_mean
from router.base.loading import Base
from router.base.module_paths import reads_input
from router.base.tokens import IGNORED


def mean_inputs(base: Base, paths: Sequence[str], batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average what `example_inputs` gives over examples, each counting as much as any other.

    Returns:
        [d] by path, float32; summed in float64.
    """
    sums: dict[str, Tensor] = {}
    examples = 0
    for means in example_inputs(base, paths, batches):
        for path, rows in means.items():
            sums[path] = sums.get(path, 0) + rows.double().sum(0)
        examples += len(next(iter(means.values())))
    return {path: (total / examples).float().cpu() for path, total in sums.items()}


def example_inputs(
    base: Base, paths: Sequence[str], batches: Iterable[Mapping[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """Average what enters modules, by path, over the tokens of each example: input_ids, attention_mask, labels [b, s].

    A decoder-only base reads prompts alone: their means are what a request can be compared with, tell nothing of the
    answers, and route better than those of whole rows. The decoder of an encoder-decoder is teacher-forced: it reads
    the targets, all positions of them at once. The code of arXiv 2402.05859 lets the model write instead, and keeps the
    last step alone, which makes its decoder's means weaker. No expert takes part.

    Yields:
        [b, d] float32 by path, for each batch.
    """
    found: dict[str, Tensor] = {}
    masks: dict[bool, Tensor] = {}

    def look(_module: nn.Module, inputs: tuple[Tensor, ...], *, path: str) -> None:
        mask = masks[base.architecture == "decoder-only" or reads_input(path)]
        found[path] = masked_mean(inputs[0].view(*mask.shape, -1), mask)

    with ExitStack() as hooks, torch.inference_mode():
        for path in paths:
            module = base.model.get_submodule(path)
            hooks.enter_context(module.register_forward_pre_hook(partial(look, path=path)))
        for given in batches:
            batch = {name: tensor.to(base.model.device) for name, tensor in given.items()}
            read, written = batch["attention_mask"].bool(), batch["labels"] != IGNORED
            # A decoder-only base is given both in one row.
            prompt = read & ~written if base.architecture == "decoder-only" else read
            masks = {True: prompt, False: written}
            base.model(**batch)
            yield dict(found)
