"""What came of a trial: a document for programs, and tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.lab import routes
from tests.real.bench import table
from tests.real.bench.findings import Findings
from tests.real.bench.growth import growth
from tests.real.bench.instructions import Instructed, by_length
from tests.real.bench.questions import Question
from tests.real.bench.rows import CONTROLS
from tests.real.bench.score import Scored
from tests.real.bench.shares import Told, share_error
from tests.real.bench.suite import Suite
from tests.real.bench.table import HALVES, Interval, Measure, Table

BY_SHARES = ("nnls-request", "nnls-cautious", "nnls-token", "nnls-gates")
"""Methods that estimate shares, all in the same way."""
CHOICES = (*BY_SHARES, "phatgoose", "average-activation", "retrieval", "arrow", "spectr", "lag")
"""Methods that a pool can have for its own."""
BESIDE = ("base", "phatgoose", "arrow", "retrieval", "oracle", "multitask", "fresh-lora", *CONTROLS)
"""What the best method is held against."""


def best(made: Table) -> str:
    """Name the method that is best over all that nobody trained on, of those that a pool can have as its own."""
    methods = [name for name in CHOICES if name in made.points]
    return max(methods, key=lambda name: sum(made.points[name][each] for each in made.of("all")))


def document(suite: Suite, base: str, found: Findings, half: str = "confirming") -> dict[str, Any]:
    """Put the table of one half into a JSON document."""
    made = table.tabulate(found.scored, suite.questions, half)
    rows: dict[str, dict[str, Any]] = {name: dict(row) for name, row in table.summary(made).items()}
    for name, row in table.summary(made, "nats").items():
        rows[name]["nats"] = row["all"]
    for name in BY_SHARES:
        if name in rows:
            rows[name]["share_error"] = round(share_error(found.told, made.questions), 3)
    return {
        "schema": 1,
        "base": base,
        "suite": suite.digest,
        "seed": suite.seed,
        "experts": len(suite.known),
        "tasks": {each: sum(question.half == each for question in suite.questions) for each in HALVES},
        "half": half,
        "methods": {name: row for name, row in rows.items() if name not in CONTROLS},
        "growth": growth(suite.known, suite.questions, found.by_name),
        "own_share": {" ".join(row[:2]): row[3] for row in by_length(found.instructed)},
        "pace": {str(size): dict(row) for size, row in found.paces.items()},
        "controls": {name: row for name, row in rows.items() if name in CONTROLS},
    }


def markdown(suite: Suite, found: Findings) -> str:
    """Write everything down for people."""
    by_name = found.by_name
    parts = [_experts(suite, by_name)]
    chosen = None
    for half in HALVES:
        made = table.tabulate(found.scored, suite.questions, half)
        # What is best is found on one half and held against the others on the other.
        chosen = chosen or best(made)
        parts += [f"## The {half} half\n", table.markdown(table.summary(made))]
        parts += ["In nats a token of the right answer:\n", table.markdown(table.summary(made, "nats"), "nats")]
        parts += [_beside(made, chosen, "points"), _beside(made, chosen, "nats")]
        hurt = table.hurt(made, by_name, chosen)
        parts += [f"Below the base by more than its interval with {chosen}: {', '.join(hurt) or 'nothing'}.\n"]
        parts += [_curve(made.questions, found.told)]
    skipped = [f"Left out: {row.name}. {row.skipped}\n" for row in found.scored if row.skipped]
    grown = growth(suite.known, suite.questions, by_name)
    return "\n".join(
        [*parts, _instructed(found.instructed), _growth(grown), _traced(found.traced), _paces(found.paces), *skipped]
    )


def _experts(suite: Suite, by_name: Mapping[str, Scored]) -> str:
    """Hold every expert against the base on its own held-out rows, in nats a token of the right answer."""
    lines = ["## Experts, on rows of their own tasks that they did not see\n"]
    lines += ["| expert | base, nats | expert, nats | fewer by | points, base | points, expert |", "|---" * 6 + "|"]
    for each in suite.known:
        question = next(q for q in suite.questions if q.name == each.task and q.family == "held_in")
        base, own = (by_name[row].found[question.name] for row in ("base", f"expert:{each.name}"))
        less = table.interval([one - other for one, other in zip(base.nats, own.nats, strict=True)])
        points = [table.in_points(question, found, base) for found in (base, own)]
        lines.append(
            f"| {each.name} | {_mean(base.nats):.2f} | {_mean(own.nats):.2f} | {_told(less)} | {points[0]:.0f} | "
            f"{points[1]:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _beside(made: Table, chosen: str, measure: Measure) -> str:
    lines = [f"How far {chosen} is ahead, in {measure}, question by question:\n"]
    for name in BESIDE:
        if name in made.points and name != chosen:
            found = table.ahead(made, chosen, name, measure)
            lines.append(f"- of {name}: " + ", ".join(f"{column} {_told(found[column])}" for column in found))
    return "\n".join(lines) + "\n"


def _curve(questions: Sequence[Question], told: Mapping[str, Told]) -> str:
    """List estimated shares beside true ones, mixture by mixture."""
    lines = ["| mixture | true share of the first | estimated | of the second |", "|---" * 4 + "|"]
    for question in questions:
        if question.family == "mixture":
            (first, share), (second, _) = question.own.items()
            mine, theirs = (_mean(told[question.name].estimated[own]) for own in (first, second))
            lines.append(f"| {question.name} | {share:.2f} | {mine:.2f} | {theirs:.2f} |")
    error = share_error(told, questions)
    return "\n".join([*lines, "", f"Mean absolute error of shares: {error:.3f}"]) + "\n"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _told(found: Interval) -> str:
    mean, low, high = found
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _instructed(instructed: Sequence[Instructed]) -> str:
    """Write down what instructions do to shares of the same documents."""
    lines = ["## Shares of the same documents, by what stands around them\n"]
    lines += [
        "| instruction | tokens | instructions | own expert's share | largest of a stranger's |",
        "|---" * 5 + "|",
    ]
    lines += [f"| {kind} | {size} | {count} | {own:.2f} | {other:.2f} |"
              for kind, size, count, own, other in by_length(instructed)]  # fmt: skip
    return "\n".join(lines) + "\n" if instructed else ""


def _traced(traced: Mapping[str, routes.Traced]) -> str:
    """Write down how far routing is from the oracle's, if it was looked at."""
    return f"## Beside the oracle's routing, on the confirming half\n\n{routes.markdown(traced)}" if traced else ""


def _growth(grown: Mapping[str, Mapping[str, Interval]]) -> str:
    """Write down how the first ones' questions are answered as the pool grows, if it was asked."""
    sizes = list(dict.fromkeys(size for row in grown.values() for size in row))
    lines = ["## As the pool grows: points on questions of the first contributors alone\n"]
    lines += [f"| method | {' | '.join(f'{size} experts' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for name, row in grown.items():
        lines.append(f"| {name} | {' | '.join(_told(row[size]) if size in row else '' for size in sizes)} |")
    return "\n".join(lines) + "\n" if sizes else ""


def _paces(paces: Mapping[int, Mapping[str, float]]) -> str:
    """Write down what generation costs, if it was timed."""
    if not paces:
        return ""
    lines = ["## Time of generation, as a multiple of the base's\n"]
    lines += [f"| method | {' | '.join(f'{size} at a time' for size in paces)} |", "|---" * (len(paces) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(f'{found[name]:.2f}' for found in paces.values())} |"
        for name in next(iter(paces.values()))
    ]
    return "\n".join(lines) + "\n"
