"""Tokens as text, for those who ask for log-probabilities."""

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from router.serving.engine import Written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Spelt(NamedTuple):
    """A token that was written, with what else might have been."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]
    """The likeliest tokens, likeliest first."""
    offset: int
    """Where in the answer's text it begins, in letters; of a letter that takes several tokens, all begin together."""


class Speller:
    """Spells the tokens of a base.

    Args:
        tokenizer: The base's.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self.spell = lru_cache(maxsize=1 << 16)(self._spell)

    def spelt(self, written: Written, offset: int) -> Spelt:
        """Spell a token and its rivals."""
        top = tuple((self.spell(token), logprob) for token, logprob in written.top)
        return Spelt(self.spell(written.token), written.logprob or 0.0, top, offset)

    def _spell(self, token: int) -> str:
        # Alone, or at the beginning, many a tokenizer leaves out the space that belongs to a token.
        first: str = self._tokenizer.decode([token])
        twice: str = self._tokenizer.decode([token, token])
        return twice.removeprefix(first) or first
