"""Answers in OpenAI's two dialects, whole and in pieces."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from router.serving.http.spelling import Spelt

Json = dict[str, Any]


class Dialect(Protocol):
    """How one of the two addresses says what was answered."""

    prefix: str
    """Of an answer's id."""
    whole: str
    """Kind of object that a whole answer is."""
    piece: str
    """Kind of object that a piece of a stream is."""

    def opening(self) -> Json | None:
        """Write what a stream says of each answer before its first token, if anything."""

    def piece_of(self, text: str, logprobs: Json | None) -> Json:
        """Write a piece of an answer's text, maybe an empty one."""

    def answer(self, text: str, logprobs: Json | None) -> Json:
        """Write an answer's whole text."""

    def logprobs(self, spelt: Sequence[Spelt]) -> Json:
        """Write log-probabilities of tokens."""


class ChatDialect:
    """What /v1/chat/completions says."""

    prefix, whole, piece = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def opening(self) -> Json | None:
        """Say who speaks."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def piece_of(self, text: str, logprobs: Json | None) -> Json:
        """Write a delta."""
        return {"delta": {"content": text} if text or logprobs else {}, "logprobs": logprobs}

    def answer(self, text: str, logprobs: Json | None) -> Json:
        """Write a message."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": logprobs}

    def logprobs(self, spelt: Sequence[Spelt]) -> Json:
        """Write one object a token, with its rivals."""
        entries = [
            _entry(each.text, each.logprob) | {"top_logprobs": [_entry(*rival) for rival in each.top]} for each in spelt
        ]
        return {"content": entries, "refusal": None}


class TextDialect:
    """What /v1/completions says."""

    prefix, whole, piece = "cmpl-", "text_completion", "text_completion"

    def opening(self) -> Json | None:
        """Say nothing."""
        return None

    def piece_of(self, text: str, logprobs: Json | None) -> Json:
        """Write a piece of text."""
        return {"text": text, "logprobs": logprobs}

    def answer(self, text: str, logprobs: Json | None) -> Json:
        """Write the text."""
        return {"text": text, "logprobs": logprobs}

    def logprobs(self, spelt: Sequence[Spelt]) -> Json:
        """Write lists with an entry a token."""
        return {
            "tokens": [each.text for each in spelt],
            "token_logprobs": [each.logprob for each in spelt],
            "top_logprobs": [dict(each.top) for each in spelt],
            "text_offset": [each.offset for each in spelt],
        }


@dataclass
class Usage:
    """How many tokens a request took: its inputs', each once, and all that was written."""

    prompt_tokens: int
    completion_tokens: int = 0

    def document(self) -> Json:
        """Write it down."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True)
class Envelope:
    """What all pieces of the reply to one request begin with."""

    dialect: Dialect
    model: str
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Json], usage: Usage) -> Json:
        """Write a whole reply."""
        return self._document(self.dialect.whole) | {"choices": list(choices), "usage": usage.document()}

    def piece(self, choices: Sequence[Json]) -> Json:
        """Write a piece of a stream."""
        return self._document(self.dialect.piece) | {"choices": list(choices)}

    def _document(self, kind: str) -> Json:
        return {"id": self.dialect.prefix + self.id, "object": kind, "created": self.created, "model": self.model}


def choice(index: int, said: Json, reason: str | None = None, **more: Json) -> Json:
    """Write one of several answers, or a piece of it; why it ended comes with the last piece."""
    return {"index": index} | said | {"finish_reason": reason} | more


def _entry(text: str, logprob: float) -> Json:
    # A part of a letter has no text of its own, and the bytes of its replacement would mislead.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
