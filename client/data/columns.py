"""Where a contributor's examples stand."""

from dataclasses import dataclass
from pathlib import Path

from protocol.errors import Code, Refused

SEEN = "seen.bin"
"""Which rows were trained on, by hash, in a run's folder and, for calibrations, in the daemon's."""


@dataclass(frozen=True)
class DataColumns:
    """Names of the columns that hold examples."""

    input: str = "input"
    target: str = "target"
    messages: str = "messages"
    text: str = "text"


@dataclass(frozen=True)
class DataSource:
    """Private files, and what decides which of their rows are held out."""

    files: tuple[Path, ...]
    columns: DataColumns
    split_key: bytes
    """The workspace's own; whoever knows it can tell of any row on which side it falls."""


def check_file(path: Path) -> None:
    """Refuse a private file that cannot be read (`DATA_UNREADABLE`)."""
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        message, hint = f"There is no data file {path}.", "Check the path."
    except IsADirectoryError:
        message, hint = f"{path} is a folder.", "Give each of its files: --data FILE --data FILE"
    except OSError as error:
        message, hint = f"The data file {path} cannot be read: {error.strerror}.", "Check the path."
    raise Refused(Code.DATA_UNREADABLE, message, hint)
