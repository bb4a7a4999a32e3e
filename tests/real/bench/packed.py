"""Several answers to one input in one row of a batch: the input is read once, and each answer sees it and itself alone.

Not a part of the product: it needs attention that any mask can be given to, as Llama's, and nobody else ranks the same
choices by twenty methods. A routed model routes token by token, so an answer is routed as if it stood alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from router.base.batching import Prompt, encode_pairs, read_prompts
from router.base.likelihood import Likelihood
from router.layer.routed_linear import routing
from router.model.planner import plan
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice, one_each

FAMILIES = ("llama",)
"""Model types whose attention was seen to take such a mask (`test_packed`)."""


def can_pack(model: RoutedModel) -> bool:
    """Tell whether a base takes rows of several answers."""
    return model.base.model.config.model_type in FAMILIES


def packed(
    model: RoutedModel, inputs: Sequence[str], answers: Sequence[Sequence[str]], choice: RoutingChoice
) -> list[list[Likelihood]]:
    """Score every answer to every input, as `RoutedModel.likelihoods` scores one each.

    Raises:
        Refused: As `router.model.planner.plan`.
    """
    prompts = read_prompts(model.base, inputs)
    planned = plan(model.features, model.held, prompts, one_each(choice, len(prompts)))
    rows = [_row(model, prompts[at], answers[at]) for at in planned.order]
    with torch.inference_mode(), routing(planned.plan):
        logits = model.base.model(**_lay_out(rows, model.base.model.dtype)).logits
    found = [_likelihoods(logits[at], row) for at, row in enumerate(rows)]
    return [each for _, each in sorted(zip(planned.order, found, strict=True), key=lambda entry: entry[0])]


class _Row(NamedTuple):
    prompt: Prompt
    targets: list[list[int]]


def _row(model: RoutedModel, prompt: Prompt, answers: Sequence[str]) -> _Row:
    return _Row(prompt, [pair.target for pair in encode_pairs(model.base, [prompt] * len(answers), answers)])


def _lay_out(rows: Sequence[_Row], dtype: torch.dtype) -> dict[str, Tensor]:
    """Lay out prompts that end at one position, and their answers behind them, but for each one's last token."""
    start = max(len(row.prompt.tokens) for row in rows)
    length = start + max(sum(len(target) - 1 for target in row.targets) for row in rows)
    tokens, positions = torch.zeros(2, len(rows), length, dtype=torch.long)
    # What is seen by nobody sees itself, since a softmax over nothing is no number.
    seen = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    for at, row in enumerate(rows):
        read = row.prompt.tokens
        begin, end = start - len(read), start
        tokens[at, begin:end], positions[at, begin:end] = torch.tensor(read), torch.arange(len(read))
        seen[at, begin:end, begin:end] = torch.ones(len(read), len(read)).tril().bool()
        for target in row.targets:
            begin, end = end, end + len(target) - 1
            tokens[at, begin:end] = torch.tensor(target[:-1])
            positions[at, begin:end] = torch.arange(len(read), len(read) + end - begin)
            seen[at, begin:end, start - len(read) : start] = True
            seen[at, begin:end, begin:end] = torch.ones(end - begin, end - begin).tril().bool()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return {
        "input_ids": tokens,
        "position_ids": positions,
        "attention_mask": mask[:, None],
        "logits_to_keep": torch.arange(start - 1, length),
    }


def _likelihoods(logits: Tensor, row: _Row) -> list[Likelihood]:
    """Read each answer off one row's logits [s, vocabulary], which begin at the prompt's last token."""
    found, begin = [], 1
    for target in row.targets:
        end = begin + len(target) - 1
        chances = torch.log_softmax(torch.cat([logits[:1], logits[begin:end]]).float(), dim=1)
        wanted = torch.tensor(target)
        total = float(chances.gather(1, wanted[:, None]).double().sum())
        found.append(Likelihood(total, len(target), bool((chances.argmax(1) == wanted).all())))
        begin = end
    return found
