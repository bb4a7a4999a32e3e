"""A whole chat as one example: the loss counts what the assistant said, turn by turn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from router.base.tokens import ASSISTANT, IGNORED, write_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[dict[str, str]]
) -> tuple[list[int], list[int]] | None:
    """Turn a chat into tokens and labels; only the assistant's turns, with what ends them, have labels.

    Prompts and turns are tokenised apart, as they are when the model answers.

    Returns:
        Tokens and as many labels; None if the template writes a turn otherwise once others follow, so that what the
        model would have been asked is no beginning of the chat.
    """
    whole = write_chat(tokenizer, turns, prompt=False)
    tokens, labels, end = list[int](), list[int](), 0
    for place, turn in enumerate(turns):
        if turn["role"] != ASSISTANT:
            continue
        asked = write_chat(tokenizer, turns[:place], prompt=True)
        # The white space after an end mark belongs to what comes next.
        said = write_chat(tokenizer, turns[: place + 1], prompt=False).rstrip()
        if not (whole.startswith(asked) and whole.startswith(said) and said.startswith(asked) and len(asked) >= end):
            return None
        before = tokenizer(whole[end : len(asked)], add_special_tokens=False)["input_ids"]
        answer = tokenizer(whole[len(asked) : len(said)], add_special_tokens=False)["input_ids"]
        tokens += [*before, *answer]
        labels += [*([IGNORED] * len(before)), *answer]
        end = len(said)
    closing = tokenizer.eos_token_id
    if closing is not None and tokens[-1] != closing:
        return [*tokens, closing], [*labels, closing]
    return tokens, labels
