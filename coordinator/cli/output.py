"""What every verb shares: a workspace opened, one JSON document or one table on stdout, talk on stderr."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.printable import printable
from protocol.programs import configure_logs, print_json

if TYPE_CHECKING:
    import threading

    from coordinator.workspace.context import Opened
    from coordinator.workspace.metrics import Metrics

PROCESSES = ("serve", "worker", "fleet")
_PIPE_WIDTH = 200


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        drawn.add_row(*(Text(printable(str(cell))) for cell in row))  # Text: names are not markup
    # A pipe has no width; whatever reads it should get whole digests.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(drawn)


def show_rows(kind: str, columns: Sequence[str], rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Write rows as a document, whole, or as a table of some columns with digests cut short."""
    if as_json:
        print_json({kind: rows})
    else:
        table(columns, ([str(row[name])[:16] if name == "digest" else row[name] for name in columns] for row in rows))


def fields(row: object, *names: str) -> dict[str, Any]:
    """Take columns out of a row."""
    return {name: getattr(row, name) for name in names}


@contextmanager
def opened_workspace(
    folder: Path,
    *processes: str,
    json_log: bool = False,
    counters: "Metrics | None" = None,
    signs: bool = True,
    **flags: Any,
) -> "Iterator[Opened]":
    """Open a workspace, in which none of some processes may work meanwhile.

    Args:
        folder: The workspace.
        processes: Their kinds.
        json_log: Write log lines as JSON.
        counters: Count what happens.
        signs: Whether the key of the log must be at hand.
        flags: Settings given on the command line; paths start where the program does.
    """
    from coordinator.workspace.context import opened
    from coordinator.workspace.locks import exclusive
    from coordinator.workspace.paths import CoordinatorWorkspace
    from coordinator.workspace.settings import load

    configure_logs(as_json=json_log)
    place = CoordinatorWorkspace(folder)
    given = {name: flag.absolute() if isinstance(flag, Path) else flag for name, flag in flags.items()}
    settings = load(place, **given)
    with exclusive(place, *processes), opened(place, settings, counters, signs=signs) as open_:
        yield open_


def stop_signal() -> "threading.Event":
    """Be told of SIGTERM or SIGINT by an event, and not by a death."""
    import signal
    import threading

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)
