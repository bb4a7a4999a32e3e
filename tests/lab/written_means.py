"""Average Activation as the paper's code had it: means of what modules are given while the model writes.

Its hooks kept what the last call of a module brought. A module of the encoder is called once, and so are the keys and
values that a decoder attends to the encoder by; every other module of a decoder is called at each step, and its mean is
that of the last written token alone. (The router's own Average Activation has teacher-forced means, over all tokens.)
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from router.base.batching import prompt_batch, read_prompts
from router.base.loading import Base
from router.pool.pool import ExpertPool

MOST_STEPS = 20
"""Tokens that the model writes at most, as in the paper's code."""
AT_ONCE = 32


def written_means(base: Base, inputs: Sequence[str], paths: Sequence[str]) -> dict[str, Tensor]:
    """Average what modules were last given, over inputs that the base model answers.

    Args:
        base: The base model; no expert takes part.
        inputs: Texts.
        paths: Modules.

    Returns:
        [d] by path, float32.
    """
    sums: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}

    def keep(_module: nn.Module, given: tuple[Tensor, ...], *, path: str) -> None:
        last[path] = given[0]

    hooks = [base.model.get_submodule(path).register_forward_pre_hook(partial(keep, path=path)) for path in paths]
    try:
        for start in range(0, len(inputs), AT_ONCE):
            batch = prompt_batch(base, read_prompts(base, inputs[start : start + AT_ONCE]))
            with torch.inference_mode():
                base.model.generate(**batch, max_new_tokens=MOST_STEPS, do_sample=False, num_beams=1)
            mask = batch["attention_mask"].float()
            for path, u in last.items():
                # One position a row, where it came step by step; else the input's, of which padding does not count.
                kept = mask if u.shape[-2] == mask.shape[1] and u.shape[-2] > 1 else torch.ones(u.shape[:2])
                means = (u.float().view(*kept.shape, -1) * kept.unsqueeze(2)).sum(1) / kept.sum(1, keepdim=True)
                sums[path] = sums.get(path, 0) + means.double().sum(0)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: (total / len(inputs)).float() for path, total in sums.items()}


def with_means(pool: ExpertPool, means: dict[str, dict[str, Tensor]]) -> ExpertPool:
    """Make a pool of the same experts that tell other means, [d] by expert's name and path."""
    changed = ExpertPool()
    for expert in pool.experts:
        changed = changed.add(replace(expert, means=MappingProxyType(means[expert.name])))
    return changed
