"""What one request may ask for; apart, so that `--help` can name the limits without waking the model."""

from typing import NamedTuple

MAX_INPUTS = 256
"""Most inputs of one request."""
MAX_SQUARED_TOKENS = 1 << 26
"""Most of inputs times the square of the longest one's tokens, which attention's memory grows with: 256 inputs of 512
tokens, 16 of 2048 or one of 8192."""
MAX_NEW_TOKENS = 1024
"""Longest answer that may be asked for, in tokens."""
DEFAULT_NEW_TOKENS = 64
"""Longest answer unless the request says otherwise, in tokens."""
CHEAP = (
    "phatgoose", "average-activation", "nnls-request", "nnls-cautious", "nnls-fixed", "nnls-token", "nnls-gates",
    "retrieval", "expert", "base",
)  # fmt: skip
"""Methods, without their arguments, that run few experts a token, and work nothing out of experts' weights."""


class Allowance(NamedTuple):
    """What a caller may ask of a router that serves others; its operator's to say."""

    methods: tuple[str, ...] = CHEAP
    """Methods beside the release's own, without their arguments."""
    k: int = 8
    """Most experts a token."""
    new_tokens: int = MAX_NEW_TOKENS
    """Longest answer, in tokens."""


DEFAULT_ALLOWANCE = Allowance()
