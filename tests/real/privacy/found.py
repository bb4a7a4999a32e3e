"""What attacks found, put together over experts, for people and for programs."""

from collections.abc import Mapping
from typing import Any

from tests.real.privacy.attacks import kind
from tests.real.privacy.auc import ALL, Area, Floats, Two, area, by_kind

Label = tuple[str, ...]


class Found:
    """Scores of members and others, by table, row of the table and kind of module."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[Label, dict[str, list[Two]]]] = {}

    def add(self, table: str, label: Label, scores: Mapping[str, Floats], own: int) -> None:
        """Take what modules, by path, say of things of which the first so many are the expert's own."""
        for each, joined in by_kind(scores, {path: kind(path) for path in scores}).items():
            self.put(table, label, each, Two(joined[:own], joined[own:]))

    def put(self, table: str, label: Label, column: str, two: Two) -> None:
        """Take one expert's scores for a cell."""
        self._tables.setdefault(table, {}).setdefault(label, {}).setdefault(column, []).append(two)

    def areas(self) -> dict[str, dict[Label, dict[str, Area]]]:
        """Work the cells out; one without anything on either side is left out."""
        return {
            table: {
                label: {column: told for column, twos in row.items() if (told := area(twos)) is not None}
                for label, row in rows.items()
            }
            for table, rows in self._tables.items()
        }


def markdown(areas: Mapping[str, Mapping[Label, Mapping[str, Area]]]) -> str:
    """Write the tables, each with its own columns, what is joined over all modules first."""
    parts = []
    for table, rows in areas.items():
        columns = sorted({column for row in rows.values() for column in row}, key=lambda name: (name != ALL, name))
        lines = [f"## {table}\n", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for label, row in rows.items():
            cells = (_told(row.get(column)) for column in columns)
            lines.append(f"| {', '.join(label)} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _told(found: Area | None) -> str:
    return "" if found is None else f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"


def document(areas: Mapping[str, Mapping[Label, Mapping[str, Area]]]) -> dict[str, Any]:
    """Put the tables into a JSON document."""
    return {
        table: {
            ", ".join(label): {column: [round(each, 3) for each in told] for column, told in row.items()}
            for label, row in rows.items()
        }
        for table, rows in areas.items()
    }
