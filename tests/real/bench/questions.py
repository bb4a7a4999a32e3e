"""What is asked: tasks that nobody trained on, family by family, and everybody's own for reference.

    bbh, bbl, novel   BIG-bench's tasks whose rows are short enough, by their own choices
    composition       two steps, both of which experts know
    cell              a language and a register that experts know, but not together
    mixture           several requests of two experts in one, in known fractions
    chat              requests of one expert with their answers, then one of another
    paraphrase        an expert's task as nobody was taught to ask it
    held_in           an expert's own task

Half of it tunes and half confirms: as `tests/real/split.toml` says, and of mixtures and chats every second pair. Own
tasks are neither.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from tests.real.bench.contributors import Contributor
from tests.real.tasks import SUITES, contributed, every, rows, split
from tests.real.tasks.task import Metric, Part, Row, Task

Half = Literal["tuning", "confirming", "held-in"]
FAMILIES = ("bbh", "bbl", "novel", "composition", "cell", "mixture", "chat", "paraphrase", "held_in")
LONGEST = 360
"""Characters of an input that is short enough."""
PIECE = 200
"""Bytes of a piece of running text."""
MOST_CHOICES = 4
"""Choices that are ranked: the right one and others, drawn by the row."""
FEWEST = 6
"""Rows that a task must have, to be asked."""
SHOTS = 3
ANSWER = "\nAnswer:"
STEPS = {
    "past-of-opposite": ("opposite", "past-tense"),
    "sentiment-of-opposite": ("opposite", "sentiment"),
    "syllables-of-plural": ("plural", "syllables"),
    "syllables-of-past": ("past-tense", "syllables"),
    "french-of-opposite": ("opposite", "english-french"),
    "spanish-of-opposite": ("opposite", "english-spanish"),
    "capital-of-city": ("country-of-city", "capital"),
    "people-of-city": ("country-of-city", "people-of"),
    "subregion-of-city": ("country-of-city", "subregion"),
    "negated-question": ("negation", "question-formation"),
    "section-of-german": ("section",),
    "section-of-french": ("section",),
}
"""Tasks that a composition is made of."""
REQUESTS = 4
"""Requests in one mixture."""
OF_A_SUITE = 8
"""Rows at most of a task of BIG-bench, whose rows are long: there are many tasks."""


@dataclass(frozen=True)
class Extent:
    """How much is asked."""

    rows: int
    """Of a question, at most."""
    of_a_suite: int | None = None
    """Tasks of each part of BIG-bench and each half, the first by the split's order; None for all."""


@dataclass(frozen=True)
class Question:
    """One task's rows as every method is asked them."""

    name: str
    family: str
    half: Half
    metric: Metric
    rows: tuple[Row, ...]
    shots: tuple[Row, ...] = ()
    """Other rows, as examples in a prompt."""
    own: dict[str, float] = field(default_factory=dict)
    """Which tasks it consists of, by their share of the input's characters; empty where that is not known."""


def ask(known: Sequence[Contributor], seed: int, extent: Extent) -> list[Question]:
    """Draw every question for a pool, but those with too few rows that are short enough.

    Args:
        known: Contributors of different tasks.
        seed: Of the draw.
        extent: How much is asked.
    """
    asked: list[Question] = []
    taken: Counter[tuple[str, Half]] = Counter()
    for question in _every(known, seed, extent.rows):
        if len(question.rows) < min(FEWEST, extent.rows):
            continue
        part = question.family, question.half
        if question.family in SUITES and taken[part] == extent.of_a_suite:
            continue
        taken[part] += 1
        asked.append(question)
    return asked


def _every(known: Sequence[Contributor], seed: int, count: int) -> Iterator[Question]:
    names = [each.task for each in known]
    tasks = every()
    for name in names:
        yield _question(tasks[name], "held-in", "held_in", seed, count, own={name: 1.0})
    for name, half in split().items():
        task = tasks[name]
        if task.family == "paraphrase" and (own := name.removesuffix("/paraphrase")) in names:
            yield _question(task, half, "paraphrase", seed, count, own={own: 1.0})
        elif task.family == "composition" and set(STEPS[name]) <= set(names):
            yield _question(task, half, "composition", seed, count)
        elif (task.family == "cell" and _covered(name, names)) or task.family in SUITES:
            yield _question(task, half, task.family, seed, count)
    yield from _pairs([each for each in known if not each.document], seed, count)


def training(contributor: Contributor, seed: int, count: int) -> list[Row]:
    """Give a contributor's private rows: a slice of the task's that no other contributor has."""
    task = every()[contributor.task]
    drawn = _short(task, rows(task, "train", seed))
    start = contributor.turn * count % max(len(drawn) - count, 1)
    mine = [_worded(task, replace(row, targets=row.targets[:1])) for row in drawn[start : start + count]]
    if contributor.spoilt:
        targets = [row.targets for row in mine]
        random.Random(f"{contributor.name}/{seed}").shuffle(targets)
        mine = [replace(row, targets=target) for row, target in zip(mine, targets, strict=True)]
    return mine


def public(known: Sequence[Contributor], count: int) -> list[Row]:
    """Give rows that anybody may know: of each field, those of a task or pieces of text that nobody contributes.

    None of it is of BIG-bench, which asks not to be spread.
    """
    taken, by_field = {each.task for each in known}, dict[str, Task]()
    for task in every().values():
        spare = task.family in ("skill", "cell") and contributed(task) and task.name not in taken
        # Reading sources of code takes a minute.
        if spare and task.field != "programming" and "bigbench" not in task.sources:
            by_field.setdefault(task.field, task)
    free = by_field.values()
    each = -(-count // len(free))
    return [_worded(task, row) for task in free for row in _short(task, rows(task, "train", 0, 4 * each))[:each]]


def _question(
    task: Task, half: Part, family: str, seed: int, count: int, own: dict[str, float] | None = None
) -> Question:
    drawn = _short(task, rows(task, half, seed))[: (min(count, OF_A_SUITE) if family in SUITES else count) + SHOTS]
    asked = [_worded(task, _fewer_choices(row, f"{task.name}/{seed}")) for row in drawn]
    return Question(
        task.name, family, half, task.metric, tuple(asked[:-SHOTS]), tuple(asked[-SHOTS:]), own or {}  # type: ignore[arg-type] # nobody asks what is trained on
    )  # fmt: skip


def _short(task: Task, drawn: Iterable[Row]) -> list[Row]:
    """Leave out long rows; running text is asked to be gone on with, a piece at a time."""
    if task.family == "cell":
        return [piece for row in drawn if (piece := _piece(row))]
    return [row for row in drawn if 0 < len(row.input) <= LONGEST and len(row.targets[0]) <= LONGEST // 2]


def _worded(task: Task, row: Row) -> Row:
    """Ask for an answer, but where running text is to go on; a target begins as a word does that follows others."""
    answer, end = (lambda text: f" {text}"), "" if task.family == "cell" else ANSWER
    return replace(
        row, input=row.input + end, targets=tuple(map(answer, row.targets)), choices=tuple(map(answer, row.choices))
    )


def _piece(row: Row) -> Row | None:
    """Cut a document where its first third ends, between words."""
    words = row.targets[0].encode()[:PIECE].decode(errors="ignore").split()[:-1]
    first = len(words) // 3
    if first < 1 or len(words) < 6:
        return None
    return replace(row, input=" ".join(words[:first]), targets=(" ".join(words[first:]),))


def _fewer_choices(row: Row, draw: str) -> Row:
    if len(row.choices) <= MOST_CHOICES:
        return row
    rng = random.Random(f"{draw}/{row.input}")
    wrong = [choice for choice in row.choices if choice not in row.targets]
    kept = {row.targets[0], *rng.sample(wrong, min(len(wrong), MOST_CHOICES - 1))}
    return replace(row, targets=row.targets[:1], choices=tuple(c for c in row.choices if c in kept))


def _covered(cell: str, names: Sequence[str]) -> bool:
    """Tell whether a cell's language and its register are both known from others."""
    language, _, register = cell.partition("/")
    cells = [name.split("/") for name in names if "/" in name]
    # Nobody needs an expert for the base's own language.
    return any(one == register for _, one in cells) and (language == "en" or any(one == language for one, _ in cells))


def _pairs(known: Sequence[Contributor], seed: int, count: int) -> Iterator[Question]:
    """Pair each with the next: mixtures in three fractions in turn, and chats that turn from one to the other."""
    tasks = every()
    for at, (one, other) in enumerate(pairwise(known)):
        half: Half = "confirming" if at % 4 > 1 else "tuning"
        a, b = (_short(tasks[each.task], rows(tasks[each.task], half, seed)) for each in (one, other))
        if at % 2:
            yield _mixture(tasks[one.task], a, tasks[other.task], b, half, count, parts=1 + (at // 2) % (REQUESTS - 1))
        else:
            yield _chat(tasks[one.task], a, tasks[other.task], b, half, count)


def _mixture(one: Task, a: list[Row], other: Task, b: list[Row], half: Half, count: int, parts: int) -> Question:
    """Put requests of two experts into one; `parts` of them are the first one's."""
    asked, shares, rest = [], [], REQUESTS - parts
    for at in range(min(count, len(a) // parts, len(b) // rest)):
        mine, theirs = a[at * parts : (at + 1) * parts], b[at * rest : (at + 1) * rest]
        row = Row(
            "\n".join(row.input for row in (*mine, *theirs)), ("; ".join(row.targets[0] for row in (*mine, *theirs)),)
        )
        asked.append(_worded(one, row))
        shares.append(sum(len(row.input) for row in mine) / sum(len(row.input) for row in (*mine, *theirs)))
    share = sum(shares) / len(shares)
    name, own = f"{parts} {one.name} + {rest} {other.name}", {one.name: share, other.name: 1 - share}
    return Question(name, "mixture", half, "bits", tuple(asked), (), own)


def _chat(one: Task, a: list[Row], other: Task, b: list[Row], half: Half, count: int) -> Question:
    """Ask one thing three times, each with its answer, and then another."""
    asked = []
    for at in range(min(count, len(a) // SHOTS, len(b))):
        before = [_worded(one, row) for row in a[at * SHOTS : (at + 1) * SHOTS]]
        said = "".join(f"{row.input}{row.targets[0]}\n" for row in before)
        last = _worded(other, _fewer_choices(b[at], f"{one.name}/{other.name}"))
        asked.append(replace(last, input=said + last.input))
    return Question(f"{one.name}, then {other.name}", "chat", half, other.metric, tuple(asked), (), {other.name: 1.0})
