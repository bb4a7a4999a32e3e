"""All that one run of the bench found, for reports and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tests.lab.routes import Traced
from tests.real.bench.instructions import Instructed
from tests.real.bench.score import Scored
from tests.real.bench.shares import Told


@dataclass(frozen=True)
class Findings:
    """Scores, and what was measured beside them."""

    scored: Sequence[Scored]
    told: Mapping[str, Told]
    """Shares, by question."""
    instructed: Sequence[Instructed] = ()
    paces: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """By size of a batch and method, as `tests.real.bench.pace` finds them."""

    traced: Mapping[str, Traced] = field(default_factory=dict)
    """By method, how far routing is from the oracle's."""

    @cached_property
    def by_name(self) -> dict[str, Scored]:
        """Rows by name."""
        return {row.name: row for row in self.scored}
