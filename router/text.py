"""Text to tokens: one place for client and router, so that a router reads a request as training read it."""

from typing import TYPE_CHECKING

from protocol.spec import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a position that the loss leaves out (PyTorch's convention)."""


def encode_input(
    tokenizer: "PreTrainedTokenizerBase", text: str, architecture: Architecture, *, templated: bool = False
) -> list[int]:
    """Turn an input into the tokens that the model reads before it answers.

    Args:
        tokenizer: The base model's.
        text: The input.
        architecture: A decoder continues its input, so there an end token has no place.
        templated: The text was written by a chat template and carries its own special tokens.
    """
    tokens: list[int] = tokenizer(text, add_special_tokens=not templated)["input_ids"]
    if architecture == "decoder-only" and tokens and tokens[-1] == tokenizer.eos_token_id:
        return tokens[:-1]
    return tokens


def encode_target(tokenizer: "PreTrainedTokenizerBase", text: str, architecture: Architecture) -> list[int]:
    """Turn a target into the tokens that the model is to write, the end token included.

    Args:
        tokenizer: The base model's.
        text: The target.
        architecture: A decoder's target continues the input, so no begin token may come between.
    """
    if architecture == "decoder-only":
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        tokens = tokenizer(text_target=text)["input_ids"]
    end = tokenizer.eos_token_id
    return tokens if end is None or (tokens and tokens[-1] == end) else [*tokens, end]
