"""What one request may ask for; apart, so that `--help` can name the limits without waking the model."""

MAX_INPUTS = 256
"""Most inputs of one request."""
MAX_NEW_TOKENS = 1024
"""Longest answer that may be asked for, in tokens."""
DEFAULT_NEW_TOKENS = 64
"""Longest answer unless the request says otherwise, in tokens."""
