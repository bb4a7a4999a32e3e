"""Progress on a screen: bars, lines or JSON."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from client.progress import Progress, Report
from protocol.programs import say

PLAIN_INTERVAL_S, JSON_INTERVAL_S = 10.0, 0.2


class Style(StrEnum):
    """How progress is shown."""

    AUTO = "auto"
    PLAIN = "plain"
    JSONL = "jsonl"


@contextmanager
def show(style: Style) -> Iterator[Report]:
    """Give a function that shows progress: bars on a terminal, else a plain line now and then, or an object a line."""
    if style is Style.JSONL:
        yield _spaced(_write_json, JSON_INTERVAL_S)
    elif style is Style.AUTO and sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _spaced(_write_line, PLAIN_INTERVAL_S)


def _spaced(write: Report, interval_s: float, clock: Callable[[], float] = time.monotonic) -> Report:
    """Let through the first and the last event of each phase, and between them one an interval."""
    shown: dict[str, tuple[int, float]] = {}

    def report(event: Progress) -> None:
        step, then = shown.get(event.phase, (-1, -math.inf))
        now = clock()
        if event.step != step and (event.step >= event.of or now - then >= interval_s):
            shown[event.phase] = (event.step, now)
            write(event)

    return report


def _write_json(event: Progress) -> None:
    loss = {} if event.loss is None else {"loss": round(event.loss, 4)}
    say(json.dumps({"event": "progress", "phase": event.phase, "step": event.step, "of": event.of, **loss}))


def _write_line(event: Progress) -> None:
    loss = "" if event.loss is None else f", loss {event.loss:.3f}"
    say(f"{event.phase}: {event.step} of {event.of}{loss}")


@contextmanager
def _bars() -> Iterator[Report]:
    from rich import progress
    from rich.console import Console

    from router.base.progress import show_bars

    show_bars()
    columns = (
        progress.TextColumn("{task.description:<8}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def report(event: Progress) -> None:
            note = "" if event.loss is None else f"loss {event.loss:.3f}"
            if event.phase not in tasks:
                tasks[event.phase] = bars.add_task(event.phase, total=event.of, note=note)
            bars.update(tasks[event.phase], completed=event.step, note=note)

        yield report
