"""What a person sees: a bar for each contributor, and below it what happens, line by line."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from deploy.demo.hostile import Refusal
from deploy.demo.measure import Row, average
from deploy.demo.skills import Contributor

_PHASES = {"expert": "trains its expert", "gates": "trains its gates", "upload": "uploads"}
_COLOURS = {"coordinator": "yellow", "router": "magenta"}


class Screen:
    """Bars above, a growing record below; on a pipe, the record alone.

    Safe to call from several threads.

    Args:
        contributors: Who gets a bar.
        console: Where to draw.
    """

    def __init__(self, contributors: Sequence[Contributor], console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._phases: dict[str, str] = {}
        self._bars = Progress(
            TextColumn("{task.description:<11}", style="cyan"),
            TextColumn("{task.fields[phase]:<20}"),
            BarColumn(bar_width=36),
            TextColumn("{task.completed:>7.0f} / {task.total:.0f}"),
            TextColumn("{task.fields[loss]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {
            one.name: self._bars.add_task(one.name, total=1, phase="waits", loss="") for one in contributors
        }

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw for the length of a block."""
        with Live(Group(Panel(self._bars, title="contributors")), console=self._console, refresh_per_second=8):
            yield

    def say(self, who: str, what: str) -> None:
        """Add a line to the record."""
        seconds = time.monotonic() - self._began
        self._console.print(
            f"[dim]{seconds:6.1f} s[/]  [{_COLOURS.get(who, 'cyan')}]{who:<11}[/] {what}", highlight=False
        )

    def progress(self, who: str, event: dict[str, Any]) -> None:
        """Move a contributor's bar; say when a phase begins."""
        phase, loss = event["phase"], event.get("loss")
        with self._lock:
            began = self._phases.get(who) != phase
            self._phases[who] = phase
        if began:
            self.say(who, _PHASES[phase])
        self._bars.update(
            self._tasks[who], completed=event["step"], total=event["of"], phase=_PHASES[phase],
            loss=f"loss {loss:.3f}" if loss is not None else "",
        )  # fmt: skip

    def done(self, who: str, what: str) -> None:
        """Fill a contributor's bar and say how it ended."""
        self._bars.update(self._tasks[who], completed=1, total=1, phase="done", loss="")
        self.say(who, what)


def accuracy_table(title: str, rows: Sequence[Row]) -> Table:
    """Lay out exact match by group and method."""
    table = Table(title=title)
    table.add_column("requests")
    for name in ("base", "own expert", "merged", "routed"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.title, *(f"{value:.0%}" for value in row.accuracy.values()))
    table.add_section()
    table.add_row("mean", *(f"{value:.0%}" for value in average(rows).values()), style="bold")
    return table


def refusal_table(refusals: Sequence[Refusal]) -> Table:
    """Lay out what was refused and why."""
    table = Table("submission", "code", "what the sender is told", title="Hostile submissions, refused")
    for refusal in refusals:
        table.add_row(refusal.case, f"[red]{refusal.code}[/]", refusal.message)
    return table
