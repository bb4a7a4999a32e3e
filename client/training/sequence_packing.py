"""Several examples in one row of a batch, which do not see each other: no time is spent on padding.

A packed batch holds the examples of the batch as it would be otherwise, so a step learns the same. Positions begin
anew with each example, from which transformers' decoders make masks that keep them apart (`create_causal_mask`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from protocol.errors import Code, Refused
from router.base.tokens import IGNORED

if TYPE_CHECKING:
    from router.base.loading import Base

_CLOSE, _CLOSE_HALF = 1e-4, 0.05
"""Of the logits' spread: rounding stays within it, an example that sees its neighbour does not."""


def pack(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lay examples into as few rows as it takes, none longer than the longest example.

    Args:
        examples: `input_ids` and `labels` of each.

    Returns:
        `input_ids`, `labels` and `position_ids`, each [rows, longest], and that no cache is to be kept.
    """
    longest = max(len(example["input_ids"]) for example in examples)
    rows: list[list[dict[str, Any]]] = []
    for example in sorted(examples, key=lambda each: -len(each["input_ids"])):
        most = longest - len(example["input_ids"])
        row = next((row for row in rows if sum(len(each["input_ids"]) for each in row) <= most), None)
        if row is None:
            rows.append(row := [])
        row.append(example)
    batch = {
        "input_ids": torch.zeros(len(rows), longest, dtype=torch.long),
        "labels": torch.full((len(rows), longest), IGNORED),
        "position_ids": torch.zeros(len(rows), longest, dtype=torch.long),
    }
    for at, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example["input_ids"])
            batch["input_ids"][at, start:end] = torch.as_tensor(example["input_ids"])
            batch["labels"][at, start:end] = torch.as_tensor(example["labels"])
            batch["labels"][at, start] = IGNORED  # the example before does not foretell how this one begins
            batch["position_ids"][at, start:end] = torch.arange(end - start)
            start = end
        batch["position_ids"][at, start:] = torch.arange(longest - start)
    return {**batch, "use_cache": False}  # where there is a cache, masks keep nothing apart


def check_packing(base: "Base") -> None:
    """Refuse a model in which packed examples see each other.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    if base.architecture == "decoder-only" and _apart(base.model):
        return
    raise Refused(
        Code.SETTINGS_INVALID,
        f"Examples cannot be packed for a model of the type {base.model.config.model_type}: they would see each other.",
        "Leave --packing out.",
    )


def _apart(model: nn.Module) -> bool:
    device = next(model.parameters()).device
    first, second = torch.tensor([[3, 5, 2, 7]], device=device), torch.tensor([[4, 6, 1]], device=device)
    with torch.no_grad():
        try:
            alone = model(input_ids=second).logits
            both = torch.cat([first, second], dim=1)
            positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]], device=device)
            packed = model(input_ids=both, position_ids=positions, use_cache=False).logits[:, first.shape[1] :]
        except TypeError:  # takes no positions
            return False
    close = _CLOSE if alone.dtype is torch.float32 else _CLOSE_HALF
    return bool((packed - alone).float().abs().max() <= close * alone.float().std())
