"""Texts to padded batches, and back."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from router.answer import Answer
from router.base import Base
from router.planning import Part
from router.record import RouteRecorder
from router.text import IGNORED, encode_input, encode_target

Side = Literal["left", "right"]


def encode(base: Base, inputs: Sequence[str]) -> dict[str, Tensor]:
    """Encode inputs that the model is to answer.

    Returns:
        input_ids and attention_mask, [b, s].
    """
    rows = [encode_input(base.tokenizer, text, base.architecture) for text in inputs]
    # A decoder continues from the last position, so there the padding goes to the left.
    return _batch(base, rows, "left" if base.architecture == "decoder-only" else "right")


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
    return _batch(base, rows, "right"), _pad(labels, IGNORED, "right", base.model.device)


def decode(base: Base, part: Part, row: int, read: tuple[list[int], list[int]], written: list[int]) -> Answer:
    """Turn what the model wrote for one input into an answer, with its routes where they were recorded.

    Args:
        base: The base model.
        part: The inputs that were routed like this one.
        row: Position among them.
        read: The input's row of input_ids and attention_mask.
        written: Tokens that the model wrote, padding included.
    """
    tokenizer = base.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    length = next((at + 1 for at, token in enumerate(written) if token in ends), len(written))
    text = tokenizer.decode(written[:length], skip_special_tokens=True).strip()
    answer = Answer(text, part.generation.release, part.method)
    recorder = part.plan.recorder
    if not isinstance(recorder, RouteRecorder):
        return answer
    ids, mask = read
    causal = base.architecture == "decoder-only"
    return replace(
        answer,
        input_tokens=tuple(tokenizer.convert_ids_to_tokens(list(compress(ids, mask)))),
        output_tokens=tuple(tokenizer.convert_ids_to_tokens(written[:length])),
        routes=tuple(recorder.routes(row, [bool(kept) for kept in mask], length, causal=causal)),
    )


def _batch(base: Base, rows: Sequence[Sequence[int]], side: Side) -> dict[str, Tensor]:
    tokenizer, device = base.tokenizer, base.model.device
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {
        "input_ids": _pad(rows, padding, side, device),
        "attention_mask": _pad([[1] * len(row) for row in rows], 0, side, device),
    }


def _pad(rows: Sequence[Sequence[int]], value: int, side: Side, device: torch.device) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.long, device=device) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)
