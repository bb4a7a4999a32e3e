"""Which columns of a table hold what."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataColumns:
    """Names of the columns that hold examples."""

    input: str = "input"
    target: str = "target"
    messages: str = "messages"
    text: str = "text"
