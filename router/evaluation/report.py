"""A comparison as a table for people, and as JSON."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from protocol.printable import printable
from router.evaluation.compare import Comparison


def as_table(found: Comparison) -> Table:
    """Draw tasks as rows and methods as columns, in percent; the best figure of a row is bold."""
    header, *rows = _cells(found)
    table = Table(caption=Text(printable(_remarks(found))), caption_justify="left")
    for at, name in enumerate(header):
        table.add_column(Text(printable(name)), justify="right" if at else "left")
    for name, *figures in rows:
        best = max(figures, key=float)
        table.add_row(Text(printable(name)), *(Text(figure, "bold" if figure == best else "") for figure in figures))
    return table


def as_json(found: Comparison) -> dict[str, Any]:
    """Build the document of `evaluate --json`; figures in [0, 1]."""
    return {
        "tasks": {
            task.name: {"rows": len(task.rows), "metric": found.measure(task), "cut": found.cut.get(task.name, 0)}
            for task in found.tasks
        },
        "methods": {
            method: {
                "mean": found.mean(method),
                "tasks": {
                    task: {**score.metrics, "ties": score.ties} | ({"expert": score.expert} if score.expert else {})
                    for task, score in scores.items()
                },
            }
            for method, scores in found.scores.items()
        },
        "skipped": found.skipped,
    }  # fmt: skip


def _cells(found: Comparison) -> Iterator[list[str]]:
    measures = dict.fromkeys(found.measure(task) for task in found.tasks)
    yield [f"percent of {' or '.join(measures)}", *found.scores]
    for task in found.tasks:
        scores = [scores[task.name] for scores in found.scores.values()]
        yield [f"{task.name} ({len(task.rows)})", *(f"{100 * found.figure(task, score):.1f}" for score in scores)]
    yield ["mean", *(f"{100 * found.mean(method):.1f}" for method in found.scores)]


def _remarks(found: Comparison) -> str:
    """Say what the figures hide."""
    said = [f"{method} was skipped: {sentence}" for method, sentence in found.skipped.items()]
    for method, scores in found.scores.items():
        taken = {task: score.expert for task, score in scores.items() if score.expert}
        if len({*taken.values()}) > 1:
            said.append(f"{method} took {', '.join(f'{who} for {task}' for task, who in taken.items())}.")
        elif taken:
            said.append(f"{method} took {next(iter(taken.values()))}.")
        if ties := sum(score.ties for score in scores.values()):
            said.append(f"{method}: in {ties} rows the first of equally likely choices was taken.")
    said += [f"{task}: {rows} inputs were cut." for task, rows in found.cut.items()]
    return "\n".join(said)
