"""What a person sees: a bar for each contributor, and above them what happens, line by line."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from deploy.demo.measure import Accuracy, average
from deploy.demo.story import Question, first_line
from protocol.errors import GreylagError
from protocol.printable import printable
from router.query.answer import Answer
from router.query.attribution import expert_shares

_PHASES = {
    "expert": "trains its expert", "gates": "trains its gates", "means": "averages activations", "upload": "uploads",
}  # fmt: skip
_COLOURS = {"coordinator": "yellow", "router": "magenta"}


class Screen:
    """A growing record with bars below it, while `bars` is entered; on a pipe, the record alone.

    Safe to call from several threads.
    """

    def __init__(self, contributors: Sequence[str], console: Console) -> None:
        self._console, self._began = console, time.monotonic()
        self.bars = Progress(
            TextColumn("{task.description:<11}", style="cyan"), TextColumn("{task.fields[phase]:<20}"),
            BarColumn(bar_width=36), TextColumn("{task.completed:>7.0f} / {task.total:.0f}"),
            TextColumn("{task.fields[loss]}"), console=console,
        )  # fmt: skip
        self._tasks = {name: self.bars.add_task(name, total=1, phase="waits", loss="") for name in contributors}
        self._phases: dict[str, str] = {}

    def say(self, who: str, what: str) -> None:
        """Add a line to the record."""
        line = f"[dim]{time.monotonic() - self._began:6.1f} s[/]  [{_COLOURS.get(who, 'cyan')}]{who:<11}[/] {what}"
        self._console.print(line, highlight=False)

    def progress(self, who: str, event: dict[str, Any]) -> None:
        """Move a contributor's bar; say when a phase begins."""
        phase, loss = _PHASES.get(event["phase"], event["phase"]), event.get("loss")
        if self._phases.get(who) != phase:
            self.say(who, phase)
        self._phases[who] = phase
        shown = f"loss {loss:.3f}" if loss is not None else ""
        self.bars.update(self._tasks[who], completed=event["step"], total=event["of"], phase=phase, loss=shown)

    def done(self, who: str, what: str) -> None:
        """Fill a contributor's bar and say how it ended."""
        self.bars.update(self._tasks[who], completed=1, total=1, phase="done", loss="")
        self.say(who, what)


def accuracy_table(title: str, rows: Mapping[str, Accuracy]) -> Table:
    """Lay out exact match by group and method."""
    mean = average(rows)
    table = Table("requests", title=title)
    for method in mean:
        table.add_column(method.replace("_", " "), justify="right")
    for group, row in rows.items():
        table.add_row(group, *(f"{value:.0%}" for value in row.values()))
    table.add_section()
    table.add_row("mean", *(f"{value:.0%}" for value in mean.values()), style="bold")
    return table


def answer_table(answers: Sequence[tuple[str, Question, Answer]], owners: Sequence[str]) -> Table:
    """Lay out requests of contributors with their answers, and the two whose experts did most of the work."""
    table = Table("requests of", "request", "answer", "expected", "who answered", title="One request of each, answered")
    for name, question, answer in answers:
        said, shares = first_line(answer.text), list(expert_shares(answer.routes, owners).items())[:2]
        style = "green" if question.answered_by(answer.text) else "red"
        who = "  ".join(f"{owner} {share:.0%}" for owner, share in shares if share)
        # Text: what people ask is not markup.
        table.add_row(name, Text(question.input), Text(printable(said), style), Text(question.targets[0].strip()), who)
    return table


def refusal_table(refusals: Mapping[str, GreylagError]) -> Table:
    """Lay out what was refused and why."""
    table = Table("submission", "code", "what the sender is told", title="Hostile submissions, refused")
    for case, refused in refusals.items():
        table.add_row(case, f"[red]{refused.code.name}[/]", refused.message)
    return table
