"""Tables out of files."""

import csv
import tempfile
from pathlib import Path
from typing import Any

import datasets

from protocol.errors import Code, Refused

_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {"on_mixed_types": None, "parse_agent_traces": False}),
    ".json": ("json", {"on_mixed_types": None, "parse_agent_traces": False}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".parquet": ("parquet", {}),
}


_FIRST_BYTES = 1 << 16
"""Read from a file to see how it begins."""


def read_rows(path: Path, scratch: Path) -> datasets.Dataset:
    """Open a data file; the copies that `datasets` makes are gone when this returns.

    Raises:
        Refused: `DATA_UNREADABLE` or `DATA_EMPTY`.
    """
    _check_file(path)
    kind, options = _READERS[path.suffix.lower()]
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL + 1)  # its messages may quote the data
    read = {"json": datasets.Dataset.from_json, "csv": datasets.Dataset.from_csv}.get(
        kind, datasets.Dataset.from_parquet
    )
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="data-") as cache:
        try:
            if kind == "csv":
                options = {**options, "features": _all_text(path, options.get("sep", ","))}
            return read(str(path), cache_dir=cache, keep_in_memory=True, **options)
        except (OSError, Refused):
            raise
        except Exception as error:  # each reader has its own family of errors
            if isinstance(error.__cause__, OSError):
                raise
            raise Refused(
                Code.DATA_UNREADABLE,
                f"{path.name} is not valid {'JSON Lines' if kind == 'json' else kind.upper()}: "
                f"{type(error.__cause__ or error).__name__}.",
                "Check that every row has the same fields with values of one type.",
            ) from error


def _check_file(path: Path) -> None:
    if path.suffix.lower() not in _READERS:
        raise Refused(
            Code.DATA_UNREADABLE,
            f"{path.name} has the ending {path.suffix or '(none)'!r}; expected one of {', '.join(_READERS)}.",
            "Save the data as JSON Lines, CSV or Parquet.",
        )
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise Refused(
            Code.DATA_UNREADABLE, f"The data file {path} cannot be read: {error.strerror}.", "Check the path."
        ) from error
    if path.stat().st_size == 0:
        raise Refused(Code.DATA_EMPTY, f"{path.name} is empty.", "Add examples.")
    if path.suffix.lower() != ".parquet":
        _check_text(path)
    if _begins_with_null(path):
        raise lacks(1, path.name)


def _check_text(path: Path) -> None:
    # pyarrow takes any bytes for text, and fails over them when a row is read.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise Refused(
                    Code.DATA_UNREADABLE, f"Line {number} of {path.name} is not UTF-8 text.", "Save the file as UTF-8."
                ) from error


def _begins_with_null(path: Path) -> bool:
    # pyarrow crashes (a segmentation fault) on JSON in which the first rows are all null.
    with path.open("rb") as file:
        return file.read(_FIRST_BYTES).split(maxsplit=1)[:1] == [b"null"]


def lacks(row: int, name: str) -> Refused:
    """Say that a row has no input or no target."""
    return Refused(Code.DATA_EMPTY, f"Row {row} of {name} lacks an input or a target.", "Fill the row in or remove it.")


def _all_text(path: Path, separator: str) -> datasets.Features:
    """Take every cell of a CSV file as it stands: "007" stays "007" and "NA" stays "NA"."""
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin it with a byte order mark
        rows = csv.reader(file, delimiter=separator)
        header = next(rows)
        for row in rows:
            # pandas takes the cells that are too many for row labels, and moves all others to the left.
            if len(row) > len(header):
                raise Refused(
                    Code.DATA_UNREADABLE,
                    f"Line {rows.line_num} of {path.name} has {len(row)} cells; the header has {len(header)}.",
                    f'Put a cell that holds {separator!r} into double quotes ("...").',
                )
    return datasets.Features({column: datasets.Value("string") for column in header})
