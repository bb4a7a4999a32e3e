"""What one request may ask for; apart, so that `--help` can name the limits without waking the model."""

MAX_INPUTS = 256
"""Most inputs of one request."""
MAX_SQUARED_TOKENS = 1 << 26
"""Most of inputs times the square of the longest one's tokens, which attention's memory grows with: 256 inputs of 512
tokens, 16 of 2048 or one of 8192."""
MAX_NEW_TOKENS = 1024
"""Longest answer that may be asked for, in tokens."""
DEFAULT_NEW_TOKENS = 64
"""Longest answer unless the request says otherwise, in tokens."""
