"""One suite: contributors with their private rows, public text and every question, drawn once and kept in a file.

Reading the packages takes minutes; what was drawn lies under the bench's folder, named by all that decides it, and is
found there the next time. The digest of the file is the suite's name in tables.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from protocol.files.atomic import write_whole
from tests.real.bench import contributors as people
from tests.real.bench import questions
from tests.real.bench.contributors import Contributor, Size
from tests.real.bench.questions import Extent, Question
from tests.real.packages import PACKAGES
from tests.real.tasks.task import Row

EXAMPLES = 420
"""Rows of one contributor."""
EXTENTS: dict[Size, Extent] = {"smoke": Extent(4), "small": Extent(8, of_a_suite=4), "full": Extent(12)}
PUBLIC_ROWS = 768


@dataclass(frozen=True)
class Suite:
    """What decides everything about one run of the bench, beside base and recipe."""

    size: Size
    seed: int
    digest: str
    known: tuple[Contributor, ...]
    """Of different tasks, in the order in which pools grow."""
    further: tuple[Contributor, ...]
    """More of the same tasks, and those whose targets went astray."""
    private: dict[str, tuple[Row, ...]]
    """By contributor."""
    public: tuple[Row, ...]
    """Of whose inputs a base's statistics are made."""
    questions: tuple[Question, ...]


def load(size: Size, seed: int, folder: Path) -> Suite:
    """Draw a suite, or find the one that was drawn before by the same code from the same packages.

    Raises:
        Refused: `DATA_UNREADABLE` if a package is missing.
    """
    path = place(size, seed, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".suite.lock"):
        if not path.is_file():
            write(path, size, seed, *_draw(size, seed))
    return read(path)


def place(size: Size, seed: int, folder: Path) -> Path:
    """Name the file of a suite by all that decides what is drawn."""
    made = hashlib.sha256(repr((size, seed, EXAMPLES, EXTENTS[size], PUBLIC_ROWS, PACKAGES)).encode())
    here = Path(__file__).parent
    tasks = sorted(here.with_name("tasks").glob("*.py"))
    for source in (here / "contributors.py", here / "questions.py", here.with_name("split.toml"), *tasks):
        made.update(source.read_bytes())
    return folder / f"suite-{size}-{seed}-{made.hexdigest()[:16]}.json"


Drawn = tuple[Sequence[Contributor], Sequence[Contributor], dict[str, list[Row]], list[Row], list[Question]]
"""Who contributes, who else, private rows, public rows and questions."""


def _draw(size: Size, seed: int) -> Drawn:
    known = people.contributors(size)
    further = people.further(known) if size == "full" else []
    private = {each.name: questions.training(each, seed, EXAMPLES) for each in (*known, *further)}
    return (
        known, further, private, questions.public(known, PUBLIC_ROWS), questions.ask(known, seed, EXTENTS[size])
    )  # fmt: skip


def write(path: Path, size: Size, seed: int, *drawn: *Drawn) -> None:
    """Keep what was drawn."""
    known, further, private, public, asked = drawn
    kept = {
        "size": size,
        "seed": seed,
        "known": [asdict(each) for each in known],
        "further": [asdict(each) for each in further],
        "private": {name: [asdict(row) for row in rows] for name, rows in private.items()},
        "public": [asdict(row) for row in public],
        "questions": [asdict(each) for each in asked],
    }
    write_whole(path, json.dumps(kept, ensure_ascii=False).encode())


def read(path: Path) -> Suite:
    """Read a suite that was drawn."""
    content = path.read_bytes()
    found = json.loads(content)
    asked = tuple(
        Question(**{**each, "rows": tuple(map(_row, each["rows"])), "shots": tuple(map(_row, each["shots"]))})
        for each in found["questions"]
    )
    private = {name: tuple(map(_row, rows)) for name, rows in found["private"].items()}
    public = tuple(map(_row, found["public"]))
    known, further = (tuple(Contributor(**each) for each in found[kind]) for kind in ("known", "further"))
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Suite(found["size"], found["seed"], digest, known, further, private, public, asked)


def _row(fields: dict[str, Any]) -> Row:
    return Row(fields["input"], tuple(fields["targets"]), tuple(fields["choices"]))
