"""Texts to padded batches."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from protocol.errors import Code, Refused
from router.base.loading import Base
from router.base.tokens import IGNORED, encode_input, encode_target

Side = Literal["left", "right"]


def encode(base: Base, inputs: Sequence[str]) -> dict[str, Tensor]:
    """Encode inputs that the model is to answer.

    Returns:
        input_ids and attention_mask, [b, s].
    """
    rows = [encode_input(base.tokenizer, text, base.architecture) for text in inputs]
    # A decoder continues from the last position, so there the padding goes to the left.
    return batch(base, rows, "left" if base.architecture == "decoder-only" else "right")


def count_tokens(base: Base, inputs: Sequence[str]) -> list[int]:
    """Count the tokens of each input that the model is to answer.

    Raises:
        Refused: `DATA_TOO_LONG` for an input that leaves the model no position for an answer.
    """
    counts = [len(encode_input(base.tokenizer, text, base.architecture)) for text in inputs]
    if base.positions is not None:
        most = base.positions - (base.architecture == "decoder-only")
        for number, count in enumerate(counts, 1):
            if count > most:
                raise Refused(
                    Code.DATA_TOO_LONG,
                    f"Input {number} is {count} tokens long; the model takes at most {most}.",
                    "Shorten it.",
                )
    return counts


class TokenPair(NamedTuple):
    """An input and what the model is to write after it."""

    input: list[int]
    target: list[int]


def encode_pairs(base: Base, inputs: Sequence[str], targets: Sequence[str]) -> list[TokenPair]:
    """Turn inputs and their targets into tokens, as training does."""
    return [
        TokenPair(
            encode_input(base.tokenizer, text, base.architecture),
            encode_target(base.tokenizer, target, base.architecture),
        )
        for text, target in zip(inputs, targets, strict=True)
    ]


def pair_batch(base: Base, pairs: Sequence[TokenPair]) -> tuple[dict[str, Tensor], Tensor]:
    """Lay inputs and targets out for one forward pass.

    Returns:
        input_ids and attention_mask, [b, s], and labels, [b, s], `IGNORED` where there is none.
    """
    if base.architecture == "decoder-only":
        rows = [pair.input + pair.target for pair in pairs]
        labels = [[IGNORED] * len(pair.input) + pair.target for pair in pairs]
    else:
        rows, labels = [pair.input for pair in pairs], [pair.target for pair in pairs]
    return batch(base, rows, "right"), _pad(labels, IGNORED, "right", base.model.device)


def batch(base: Base, rows: Sequence[Sequence[int]], side: Side) -> dict[str, Tensor]:
    """Pad rows of tokens to one length.

    Returns:
        input_ids and attention_mask, [b, s].
    """
    tokenizer, device = base.tokenizer, base.model.device
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {
        "input_ids": _pad(rows, padding, side, device),
        "attention_mask": _pad([[1] * len(row) for row in rows], 0, side, device),
    }


def _pad(rows: Sequence[Sequence[int]], value: int, side: Side, device: torch.device) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.long, device=device) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def masked_mean(u: Tensor, mask: Tensor) -> Tensor:
    """Average over positions.

    Args:
        u: [b, s, d].
        mask: [b, s], the positions that count.

    Returns:
        [b, d] float32.
    """
    kept = mask.unsqueeze(2)
    return torch.where(kept, u.float(), 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
