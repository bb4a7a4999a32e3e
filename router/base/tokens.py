"""Text to tokens: one place for client and router, so that a router reads a request as training read it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from protocol.spec import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a position that the loss leaves out (PyTorch's convention)."""


ASSISTANT = "assistant"
"""Role of the model's own turns in a chat."""


class Templated(str):
    """An input that a chat template wrote, and that carries its own special tokens."""

    __slots__ = ()


def encode_input(tokenizer: "PreTrainedTokenizerBase", text: str, architecture: Architecture) -> list[int]:
    """Turn an input, `Templated` or plain, into the tokens that the model reads before it answers."""
    tokens: list[int] = tokenizer(str(text), add_special_tokens=not isinstance(text, Templated))["input_ids"]
    # A decoder continues its input, so there an end token has no place.
    if architecture == "decoder-only" and tokens and tokens[-1] == tokenizer.eos_token_id:
        return tokens[:-1]
    return tokens


def encode_target(tokenizer: "PreTrainedTokenizerBase", text: str, architecture: Architecture) -> list[int]:
    """Turn a target into the tokens that the model is to write, the end token included."""
    # A decoder's target continues the input, so no begin token may come between.
    if architecture == "decoder-only":
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        tokens = tokenizer(text_target=text)["input_ids"]
    end = tokenizer.eos_token_id
    return tokens if end is None or (tokens and tokens[-1] == end) else [*tokens, end]


def write_prompt(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Mapping[str, object]]) -> str:
    """Write a chat down to where the assistant is to speak; without a chat template as lines `role: content`."""
    if tokenizer.chat_template:
        return Templated(write_chat(tokenizer, turns, prompt=True))
    return "\n".join([*(f"{turn['role']}: {turn['content']}" for turn in turns), f"{ASSISTANT}:"])


def write_chat(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Mapping[str, object]], *, prompt: bool) -> str:
    """Write turns as the tokenizer's chat template does, as a prompt if the assistant is to speak next."""
    return str(
        tokenizer.apply_chat_template([dict(turn) for turn in turns], add_generation_prompt=prompt, tokenize=False)
    )
