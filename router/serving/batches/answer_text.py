"""The text of an answer, as far as it is certain, while its tokens come."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from router.model.decode import before

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HALF = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for a character of which bytes are missing."""


class AnswerText:
    """Tells a text piece by piece.

    Nothing that was told is taken back: a character that is not whole, what might begin a text to stop at, and space
    that may be the last, wait for the next token. All pieces together are the text without space around it.

    Args:
        tokenizer: The base's.
        stop: Texts before which it ends.

    Attributes:
        stopped: Whether one of them came.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._told = ""
        self.stopped = False

    def grow(self, tokens: Sequence[int]) -> str:
        """Return what all tokens so far [s] let us say beyond what was told."""
        whole = str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
        text = before(whole, self._stop)
        self.stopped = len(text) < len(whole)
        if not self.stopped:
            text = text.rstrip(_HALF)
            text = text[: len(text) - max((_begun(text, end) for end in self._stop), default=0)]
        return self.rest(text.strip())

    def rest(self, text: str) -> str:
        """Return what a text adds to what was told; nothing where a tokenizer wrote over what stood before."""
        if not text.startswith(self._told):
            return ""
        added, self._told = text[len(self._told) :], text
        return added


def _begun(text: str, end: str) -> int:
    """Count the letters that a text ends in and another begins with."""
    most = min(len(end) - 1, len(text))
    return next((length for length in range(most, 0, -1) if text.endswith(end[:length])), 0)
