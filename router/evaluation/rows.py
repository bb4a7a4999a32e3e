"""Rows of tasks with what is right, as a person writes them down. Needs no torch."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.statement import Strict, first_invalid
from router.base.tokens import ASSISTANT
from router.query.request import Turn

_LONGEST_NAME = 100


class EvaluationRow(Strict):
    """One input with what is right."""

    number: int
    """Its line in the file, from 1 on."""
    task: str
    input: str
    """The text that is asked; empty where `turns` are."""
    turns: tuple[Turn, ...]
    """A chat, up to where the assistant is to speak."""
    targets: tuple[str, ...]
    """Right answers, one at least."""
    choices: tuple[str, ...]
    """Answers to choose among; none where the model writes freely."""


@dataclass(frozen=True)
class Task:
    """Rows that are scored alike and averaged."""

    name: str
    rows: tuple[EvaluationRow, ...]
    metric: str | None = None
    """What counts where the model writes freely; None for what whoever asks says."""
    new_tokens: int | None = None
    """Longest answer that is written; None likewise."""

    @property
    def ranked(self) -> bool:
        """Whether the model chooses among given answers."""
        return bool(self.rows[0].choices)

    @property
    def digest(self) -> str:
        """Sha256 of all that the rows say."""
        return hashlib.sha256(strict_json.dumps([row.model_dump() for row in self.rows])).hexdigest()


class _Line(Strict):
    """A row as it stands in the file."""

    task: str | None = None
    input: str | None = None
    messages: list[Turn] | None = None
    target: str | None = None
    targets: list[str] | None = None
    choices: list[str] | None = None


def read_rows(lines: Iterable[str], *, name: str, limit: int | None = None) -> list[Task]:
    """Read JSON Lines of `input` or `messages`, `target` or `targets`, and, where they are given, `choices`.

    Files that experts are trained on have this form, too: of a chat without a target, the assistant's last turn is
    the target. Tasks are in the order in which they first appear.

    Args:
        lines: One object a line; blank lines are passed over.
        name: Task of rows that name none.
        limit: Most rows of a task that are kept, the first ones.

    Raises:
        Refused: `TASK_ROW`, naming the line, or `DATA_EMPTY`.
    """
    by_task: dict[str, list[EvaluationRow]] = {}
    for number, value in strict_json.read_lines(lines, "Row {} of the tasks", Code.TASK_ROW):
        row = read_row(value, number=number, name=name)
        mine = by_task.setdefault(row.task, [])
        if mine and bool(mine[0].choices) != bool(row.choices):
            raise _wrong(number, f"task {row.task!r} has rows with choices and rows without", "Make it two tasks.")
        mine.append(row)
    if not by_task:
        raise Refused(
            Code.DATA_EMPTY,
            "The tasks hold no row.",
            'Write lines {"task": "...", "input": "...", "target": "...", "choices": ["...", "..."]}.',
        )
    return [Task(task, tuple(rows[:limit])) for task, rows in by_task.items()]


def read_row(value: Any, *, number: int, name: str) -> EvaluationRow:
    """Read one row, the object of a line of that number; `name` is the task of one that names none.

    Raises:
        Refused: `TASK_ROW`.
    """
    try:
        found = _Line.model_validate_json(strict_json.dumps(value))
    except ValidationError as error:
        place, reason = first_invalid(error)
        raise _wrong(number, f"{place}: {reason}") from error
    task = name if found.task is None else found.task
    if not task.strip() or len(task) > _LONGEST_NAME or not task.isprintable():
        raise _wrong(number, f"the task's name is no line of 1 to {_LONGEST_NAME} letters")
    if (found.input is None) == (found.messages is None):
        raise _wrong(number, "it needs either an input or messages")
    turns, said = _turns(found.messages or [], number)
    targets = _targets(found, said, number)
    choices = tuple(found.choices or ())
    strange = [target for target in targets if choices and target not in choices]
    wrong = (
        (found.input is not None and not found.input.strip(), "the input is empty"),
        (found.choices is not None and len(choices) < 2, "choices are two at least"),  # noqa: PLR2004
        (len(set(choices)) < len(choices), "a choice stands twice"),
        (not all(text.strip() for text in (*choices, *targets)), "a target or a choice is empty"),
        (strange, f"the target {next(iter(strange), '')!r:.100} is none of the {len(choices)} choices"),
    )
    for found_so, reason in wrong:
        if found_so:
            raise _wrong(number, reason)
    text = found.input or ""
    return EvaluationRow(number=number, task=task, input=text, turns=turns, targets=targets, choices=choices)


def _turns(messages: Sequence[Turn], number: int) -> tuple[tuple[Turn, ...], str | None]:
    """Split a chat into what is asked and, where the assistant has the last word, that."""
    if any(not turn["content"].strip() for turn in messages):
        raise _wrong(number, "a message is empty")
    last = messages[-1] if messages else None
    if last is None or last["role"] != ASSISTANT:
        return tuple(messages), None
    if len(messages) == 1:
        raise _wrong(number, "the messages ask nothing")
    return tuple(messages[:-1]), last["content"]


def _targets(found: _Line, said: str | None, number: int) -> tuple[str, ...]:
    given = [[text] for text in (found.target, said) if text is not None]
    if found.targets is not None:
        given.append(found.targets)
    if len(given) != 1 or not given[0]:
        raise _wrong(number, "it needs one of target, targets and, in messages, a last word of the assistant")
    return tuple(dict.fromkeys(given[0]))


def _wrong(number: int, what: str, hint: str = "Correct the row.") -> Refused:
    return Refused(Code.TASK_ROW, f"Row {number} of the tasks: {what}.", hint)
