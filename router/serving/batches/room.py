"""How many tokens' keys and values there is memory for."""

from protocol.errors import Code, Unavailable
from router.base.loading import Base
from router.base.memory import free_bytes

PAGE_TOKENS = 32
"""Memory is given to requests by so many tokens."""
CHUNK_TOKENS = 512
"""Tokens that a packed batch holds at most; a longer prompt is read in several steps, between which others go on."""

USUAL_TOKENS = 4096
"""More than requests have as a rule, all at a time; memory for still more is not taken, even where it is free."""


def pages(tokens: int) -> int:
    """Count the pages that tokens take."""
    return -(-tokens // PAGE_TOKENS)


def room(base: Base, share: float, seats: int) -> int:
    """Count the pages that a share of the memory that is free holds, as far as so many requests can ever use them.

    Raises:
        Unavailable: `MEMORY_FULL` if it holds no page.
    """
    found = int(share * free_bytes(base.model.device)) // (PAGE_TOKENS * _token_bytes(base))
    if base.positions is not None:
        # An encoder's tokens are read beside those that are written.
        longest = base.positions if base.architecture == "decoder-only" else 2 * base.positions
        found = min(found, max(pages(longest), seats * pages(min(longest, USUAL_TOKENS))))
    if found < 1:
        raise Unavailable(
            Code.MEMORY_FULL,
            "The share of the memory that requests may take holds none.",
            "Give them a larger share, or free some memory.",
        )
    return found


def _token_bytes(base: Base) -> int:
    """Return what one token takes in memory."""
    config, bytes_each = base.model.config.get_text_config(), base.model.dtype.itemsize
    heads = config.num_attention_heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    # While a layer attends, its keys and values stand there once more, as they are kept and for every head.
    attending = (2 * heads + kept) * width
    return int((2 * kept * width * layers + attending + CHUNK_TOKENS) * bytes_each)
