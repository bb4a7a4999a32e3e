"""Published benchmarks as data: which rows of which data sets, how they are asked, and what counts.

A recipe is a TOML file: `title`, `source`, `notes`, `max_input_tokens`, a table `defaults`, and a `[[tasks]]` for each
task, whose fields are those of `RecipeTask`.
"""

import tomllib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.statement import Strict, first_invalid
from router.evaluation.rows import Task, read_row
from router.query.limits import MAX_NEW_TOKENS


class RecipeTask(Strict):
    """One task: rows of a data set, in some or all of its configurations."""

    name: str
    dataset: str
    """Hugging Face id."""
    configs: tuple[str, ...] = ()
    """Configurations, whose rows are put together; none for a data set that has one."""
    splits: tuple[str, ...]
    """Whose rows are put together, too."""
    input: str
    """Column of the input."""
    template: str = "{input}"
    """What is asked."""
    target: str | None = None
    """Column of the right answer."""
    targets: str | None = None
    """Column of a list of right answers."""
    scores: str | None = None
    """Column of a list of numbers, 1 where the choice of that place is right."""
    choices: str | tuple[str, ...] | None = None
    """Column of a list of choices, or the choices of all rows."""
    metric: Literal["exact", "normalised", "f1", "rouge-l"] | None = None
    """What counts where the model writes freely."""
    new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] | None = None
    """Longest answer that it writes."""


class Benchmark(Strict):
    """A benchmark."""

    title: str
    source: str
    """Where it is described."""
    notes: tuple[str, ...]
    """What the source leaves open, and what was done."""
    max_input_tokens: Annotated[int, Field(ge=1)]
    """Inputs are cut to so many tokens."""
    tasks: tuple[RecipeTask, ...]


def read_recipe(path: Path) -> Benchmark:
    """Read a recipe.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        defaults = fields.pop("defaults", {})
        fields["tasks"] = [{**defaults, **task} for task in fields.get("tasks", [])]
        recipe = Benchmark.model_validate_json(strict_json.dumps(fields))
    except ValidationError as error:
        place, reason = first_invalid(error)
        raise _wrong(path, f"{place}: {reason}") from error
    except (ValueError, TypeError) as error:
        raise _wrong(path, str(error)) from error
    for task in recipe.tasks:
        if sum(each is not None for each in (task.target, task.targets, task.scores)) != 1:
            raise _wrong(path, f"{task.name} needs one of target, targets and scores")
        if task.scores and not task.choices:
            raise _wrong(path, f"{task.name} has scores, but no choices")
        if "{input}" not in task.template:
            raise _wrong(path, f"{task.name} has a template without {{input}}")
    return recipe


def cook(recipe: Benchmark, *, data: Path | None = None, limit: int | None = None) -> list[Task]:
    """Load the rows of a recipe, of each task so many at most, the first ones.

    `data` is a folder that holds the data sets as folders, `DATASET/CONFIG/SPLIT.jsonl` or `.parquet`; without one, the
    Hugging Face Hub and what was fetched from it before serve.

    Raises:
        Refused: `DATA_UNREADABLE` for a data set that cannot be loaded, `DATA_COLUMNS` for one that has other
            columns, `DATA_EMPTY`, or `TASK_ROW` for a row that contradicts itself.
    """
    return [_cooked(task, data, limit) for task in recipe.tasks]


def _cooked(task: RecipeTask, data: Path | None, limit: int | None) -> Task:
    numbered = islice(enumerate(_rows(task, data), 1), limit)
    rows = [read_row(_asked(task, fields), number=number, name=task.name) for number, fields in numbered]
    if not rows:
        raise Refused(Code.DATA_EMPTY, f"{task.dataset} holds no row for {task.name}.", "Check the recipe's splits.")
    return Task(task.name, tuple(rows), task.metric, task.new_tokens)


def _rows(task: RecipeTask, data: Path | None) -> Iterator[Mapping[str, Any]]:
    import datasets  # noqa: PLC0415 - seconds of import

    datasets.disable_progress_bars()
    for config in task.configs or (None,):
        for split in task.splits:
            try:
                place = (task.dataset, config) if data is None else (str(data / task.dataset / (config or "")),)
                yield from datasets.load_dataset(*place, split=split)
            except (OSError, ValueError, RuntimeError, ImportError) as error:
                where = f"{task.dataset}, {config}, {split}" if config else f"{task.dataset}, {split}"
                raise Refused(
                    Code.DATA_UNREADABLE,
                    f"The data of {task.name} ({where}) cannot be loaded: {str(error).splitlines()[0]:.200}.",
                    "Fetch them once with a network, or give a folder that holds them with --data.",
                ) from error


def _asked(task: RecipeTask, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row of a data set into one that `evaluate` reads."""
    of_choices = task.choices if isinstance(task.choices, str) else None
    named = (task.input, task.target, task.targets, task.scores, of_choices)
    if missing := [name for name in named if name and name not in fields]:
        raise Refused(
            Code.DATA_COLUMNS,
            f"{task.dataset} has no column {missing[0]}; it has {', '.join(sorted(fields))[:200]}.",
            "Get the data set that the recipe names.",
        )
    found: dict[str, Any] = {"task": task.name, "input": task.template.replace("{input}", fields[task.input])}
    choices = fields[of_choices] if of_choices else task.choices
    if task.target:
        right = [fields[task.target]]
    elif task.targets:
        right = fields[task.targets]
    else:
        right = [choice for choice, score in zip(choices or (), fields[task.scores or ""], strict=True) if score == 1]
    found["targets"] = _distinct(right)
    return found | ({"choices": _distinct(choices)} if choices else {})


def _distinct(texts: Any) -> list[str]:
    """Strip answers, as templates do, and name each once."""
    return list(dict.fromkeys(text.strip() for text in texts))


def _wrong(path: Path, reason: str) -> Refused:
    return Refused(Code.SETTINGS_INVALID, f"{path} is no recipe: {reason}.", "Correct the file.")
