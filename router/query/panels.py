"""Inputs by task, as a person writes them down to look at how they are routed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ConfigDict, SkipValidation, TypeAdapter, ValidationError

from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.statement import first_invalid
from router.query.answer import Answered
from router.query.attribution import Panel
from router.query.request import Input, take_input


@dataclass(frozen=True)
class TaskInput:
    """One input of a task."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    task: str
    input: SkipValidation[Input]
    oracle: str | None = None
    """The expert that was trained for the task, as `name` or `contributor/name`."""
    score: float | None = None
    """How well the model did on the input; a task's score is the mean."""


_TASK_INPUT = TypeAdapter(TaskInput)


def read_tasks(lines: Iterable[str]) -> list[TaskInput]:
    """Read JSON Lines of `task`, `input` or `messages` and, where they are known, `oracle` and `score`.

    Raises:
        Refused: `REQUEST_INVALID`, naming the line, or if there is none.
    """
    where = "Line {} of the tasks"
    read = strict_json.read_lines(lines, where, Code.REQUEST_INVALID)
    found = [_read(value, where.format(number)) for number, value in read]
    if not found:
        raise Refused(Code.REQUEST_INVALID, "The tasks hold no input.", 'Write lines {"task": "...", "input": "..."}.')
    return found


def panels_by_task(tasks: Sequence[TaskInput], answered: Answered) -> list[Panel]:
    """Put the answers of each task together.

    Args:
        tasks: What was asked.
        answered: The answers in the same order, with their routes.

    Raises:
        Refused: `EXPERT_UNKNOWN` for an oracle that is not in the release.
    """
    panels = []
    for title in dict.fromkeys(each.task for each in tasks):
        mine = [at for at, each in enumerate(tasks) if each.task == title]
        oracles = {tasks[at].oracle for at in mine} - {None}
        if len(oracles) > 1:
            raise Refused(Code.REQUEST_INVALID, f"Task {title!r:.100} has several oracles.", "Name one a task.")
        scores = [score for at in mine if (score := tasks[at].score) is not None]
        panels.append(
            Panel(
                title,
                [route for at in mine for route in answered.answers[at].routes],
                position(oracles.pop(), answered.experts) if oracles else None,
                sum(scores) / len(scores) if scores else None,
            )
        )
    return panels


def position(name: str | None, experts: Sequence[str]) -> int | None:
    """Look an expert up by `name` or `contributor/name`; None stands for none.

    Raises:
        Refused: `EXPERT_UNKNOWN`, also if several contributors have an expert of that name.
    """
    if name is None:
        return None
    found = [at for at, full in enumerate(experts) if name in (full, full.partition("/")[2])]
    if len(found) != 1:
        raise Refused(
            Code.EXPERT_UNKNOWN,
            f"{len(found)} experts are called {name!r:.200}.",
            f"Name one of: {', '.join(experts)}.",
        )
    return found[0]


def _read(value: Any, where: str) -> TaskInput:
    asked = take_input(value, where)
    try:
        return replace(_TASK_INPUT.validate_json(strict_json.dumps({**value, "input": ""})), input=asked)
    except ValidationError as error:
        place, reason = first_invalid(error)
        raise Refused(Code.REQUEST_INVALID, f"{where}: {place}: {reason}.", "Correct the line.") from error
