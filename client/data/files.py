"""Rows out of files. A refusal names the row and never quotes it."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from client.data.columns import check_file
from protocol.errors import Code, Refused


class Row(NamedTuple):
    """One row of a file, as it stands there."""

    where: str
    """For a refusal: `Line 3 of notes.jsonl`."""
    fields: Mapping[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Read a file of JSON Lines, one JSON list, CSV (by commas, or semicolons), TSV or Parquet, row by row.

    Raises:
        Refused: `DATA_UNREADABLE` or `DATA_EMPTY`.
    """
    check_file(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise _unreadable(
            f"{path.name} has the ending {path.suffix or '(none)'!r}; expected one of {', '.join(_READERS)}",
            "Save the data as JSON Lines, CSV or Parquet.",
        )
    if path.stat().st_size == 0:
        raise Refused(Code.DATA_EMPTY, f"{path.name} is empty.", "Add examples.")
    return read(path)


def count_rows(path: Path) -> int:
    """Count the rows of a file, reading all of it.

    Raises:
        Refused: As `read_rows`.
    """
    return sum(1 for _ in read_rows(path))


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")  # spreadsheets begin with a byte order mark
            except UnicodeDecodeError as error:
                raise _unreadable(
                    f"Line {number} of {path.name} is not UTF-8 text", "Save the file as UTF-8."
                ) from error


def _json_rows(path: Path) -> Iterator[Row]:
    lines = _lines(path)
    first = next(lines)
    if first.lstrip().startswith("["):
        rows = _parse("".join(chain([first], lines)), path.name)
        yield from (_row(f"Row {number} of {path.name}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(chain([first], lines), 1):
        if line.strip():
            where = f"Line {number} of {path.name}"
            yield _row(where, _parse(line, where))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # The parser's own sentence may quote the text.
        raise _unreadable(
            f"{where} is no whole JSON value", 'Write one object a line, as in {"input": "...", "target": "..."}.'
        ) from None


def _row(where: str, fields: Any) -> Row:
    if not isinstance(fields, dict):
        raise _unreadable(f"{where} is no JSON object", 'Write {"input": "...", "target": "..."}.')
    return Row(where, fields)


def _csv_rows(path: Path) -> Iterator[Row]:
    """Take every cell as it stands: "007" stays "007" and "NA" stays "NA"."""
    lines = _lines(path)
    first = next(lines)
    separator = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","
    csv.field_size_limit(sys.maxsize)
    cells = csv.reader(chain([first], lines), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        where = f"Line {cells.line_num + 1} of {path.name}"
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as error:
            raise _unreadable(
                f"In the row that begins at line {where[5:]}, a double quote is not closed or not doubled",
                'Write a quote inside a quoted cell twice: "say ""hello"" to them".',
            ) from error
        if not header:
            header = row
        elif row:
            if len(row) != len(header):
                raise _unreadable(
                    f"{where} has {len(row)} cells; the header has {len(header)}",
                    f'Put a cell that holds {separator!r} into double quotes ("...").',
                )
            yield Row(where, dict(zip(header, row, strict=True)))


def _parquet_rows(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"Row {number} of {path.name}", fields)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise _unreadable(f"{path.name} is not valid Parquet", "Write it again.") from error


def _unreadable(what: str, hint: str) -> Refused:
    return Refused(Code.DATA_UNREADABLE, f"{what}.", hint)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_rows, ".json": _json_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows,
}  # fmt: skip
