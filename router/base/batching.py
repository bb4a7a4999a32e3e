"""Texts to padded batches."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from protocol.errors import Code, Refused
from router.base.loading import Base
from router.base.tokens import IGNORED, encode_input, encode_target, write_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Side = Literal["left", "right"]


class Prompt(NamedTuple):
    """An input, as text and as the tokens that the model reads: written and tokenised once, whoever looks at it."""

    text: str
    tokens: list[int]


PromptLike = str | Prompt | Sequence[Mapping[str, object]]
"""A text, one that is tokenised already, or the turns of a chat, `role` and `content` of each."""


def read_prompts(base: Base, inputs: Iterable[PromptLike]) -> list[Prompt]:
    """Turn inputs into what the model reads, as training does (`REQUEST_INVALID` for a chat that no template takes)."""
    return [asked if isinstance(asked, Prompt) else _read(base, asked) for asked in inputs]


def _read(base: Base, asked: str | Sequence[Mapping[str, object]]) -> Prompt:
    try:
        text = asked if isinstance(asked, str) else write_prompt(base.tokenizer, asked)
    except TemplateError as error:
        what = f"The base's chat template takes no such chat: {error}."
        raise Refused(Code.REQUEST_INVALID, what, "Change whose turns there are, and in which order.") from error
    return Prompt(text, encode_input(base.tokenizer, text, base.architecture))


def check_letters(base: Base, texts: Iterable[str], most: int) -> None:
    """Refuse, before it is tokenised, what has more letters than so many of the base's tokens can spell.

    To tokenise a long text takes a hundred times its size in memory, only to refuse it.

    Raises:
        Refused: `DATA_TOO_LONG`.
    """
    letters = most * _longest(base.tokenizer)
    for number, text in enumerate(texts, 1):
        if len(text) > letters:
            what = f"Input {number} is {len(text)} letters long; {most} tokens hold at most {letters}."
            raise Refused(Code.DATA_TOO_LONG, what, "Shorten it.")


@lru_cache(maxsize=4)
def _longest(tokenizer: "PreTrainedTokenizerBase") -> int:
    return max(map(len, tokenizer.get_vocab()))


def check_lengths(base: Base, prompts: Sequence[Prompt]) -> None:
    """Refuse what leaves the model no position for an answer (`DATA_TOO_LONG`)."""
    if base.positions is None:
        return
    most = base.positions - (base.architecture == "decoder-only")
    for number, prompt in enumerate(prompts, 1):
        if len(prompt.tokens) > most:
            raise Refused(
                Code.DATA_TOO_LONG,
                f"Input {number} is {len(prompt.tokens)} tokens long; the model takes at most {most}.",
                "Shorten it.",
            )


def prompt_batch(base: Base, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Lay prompts out that the model is to answer: input_ids and attention_mask, [b, s]."""
    # A decoder continues from the last position, so there the padding goes to the left.
    side: Side = "left" if base.architecture == "decoder-only" else "right"
    return batch(base, [prompt.tokens for prompt in prompts], side)


class TokenPair(NamedTuple):
    """An input and what the model is to write after it."""

    input: list[int]
    target: list[int]


def encode_pairs(base: Base, inputs: Sequence[PromptLike], targets: Sequence[str]) -> list[TokenPair]:
    """Turn inputs and their targets into tokens, as training does."""
    return [
        TokenPair(prompt.tokens, encode_target(base.tokenizer, target, base.architecture))
        for prompt, target in zip(read_prompts(base, inputs), targets, strict=True)
    ]


def pair_batch(base: Base, pairs: Sequence[TokenPair]) -> tuple[dict[str, Tensor], Tensor]:
    """Lay inputs and targets out: input_ids and attention_mask, [b, s], and labels, [b, s], `IGNORED` for none."""
    if base.architecture == "decoder-only":
        rows = [pair.input + pair.target for pair in pairs]
        labels = [[IGNORED] * len(pair.input) + pair.target for pair in pairs]
    else:
        rows, labels = [pair.input for pair in pairs], [pair.target for pair in pairs]
    return batch(base, rows, "right"), _pad(labels, IGNORED, "right", base.model.device)


def batch(base: Base, rows: Sequence[Sequence[int]], side: Side) -> dict[str, Tensor]:
    """Pad rows of tokens to one length: input_ids and attention_mask, [b, s]."""
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
    """Average u [b, s, d] over the positions that count by mask [b, s]; gives [b, d] float32."""
    kept = mask.unsqueeze(2)
    return torch.where(kept, u.float(), 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
