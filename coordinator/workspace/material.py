"""What experts are tried on: public lines, and rows with what is right, of which some stay with the operator."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import Code, Refused

if TYPE_CHECKING:
    from router.query.request import Input

ROWS, CANARIES = "the pool's public rows", "rows that the operator keeps to himself"


@dataclass(frozen=True)
class TrialRows:
    """Inputs with one right answer each."""

    inputs: tuple["Input", ...]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """All that an expert is tried on."""

    lines: tuple[str, ...]
    """Public texts on which numbers must stay finite; their loss says nothing, since nobody is asked for them."""
    rows: dict[str, TrialRows] = field(default_factory=dict)
    """By what they are called in a refusal."""

    @property
    def digest(self) -> str:
        """Sha256 of all of it."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def read_material(lines: Sequence[str], rows: Path | None, canaries: Path | None, expected: str | None) -> Material:
    """Read what an operator gave.

    Args:
        lines: Public texts.
        rows: JSON Lines of public rows, if there are any.
        canaries: JSON Lines of private rows, if the pool has any.
        expected: The digest that the pool gives of them.

    Raises:
        Refused: `DATA_UNREADABLE`, `DATA_EMPTY`, `TASK_ROW`, or `SETTINGS_INVALID` for other canaries than the pool's.
    """
    found = {}
    if rows is not None:
        found[ROWS] = parse_rows(rows, read_file(rows))
    if (canaries is None) != (expected is None):
        whose = "are missing" if canaries is None else "are given, and the pool names none"
        what = f"The pool's canaries {whose}."
        raise Refused(Code.SETTINGS_INVALID, what, "Correct the setting `canaries` in coordinator.toml.")
    if canaries is not None:
        content = read_file(canaries)
        if hashlib.sha256(content).hexdigest() != expected:
            what = f"The canaries {canaries} are not those whose digest the pool names."
            raise Refused(Code.SETTINGS_INVALID, what, "Restore the file that the pool was founded with.")
        found[CANARIES] = parse_rows(canaries, content)
    return Material(tuple(lines), found)


def parse_rows(path: Path, content: bytes) -> TrialRows:
    """Parse JSON Lines of `input` or `messages` and `target`, as `router.evaluation.rows`; the first target counts.

    Raises:
        Refused: `DATA_UNREADABLE`, `DATA_EMPTY` or `TASK_ROW`.
    """
    from router.evaluation.rows import read_rows  # noqa: PLC0415 - the router's floors, which the doors do without

    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(Code.DATA_UNREADABLE, f"{path} cannot be read: {error.reason}.", "Give UTF-8.") from error
    rows = [row for task in read_rows(text.split("\n"), name="rows") for row in task.rows]
    return TrialRows(tuple(list(row.turns) or row.input for row in rows), tuple(row.targets[0] for row in rows))


def read_file(path: Path) -> bytes:
    """Read a file of rows (`DATA_UNREADABLE`)."""
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"The rows {path} cannot be read: {error.strerror}."
        raise Refused(Code.DATA_UNREADABLE, what, "Check the path.") from error
