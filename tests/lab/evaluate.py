"""Scores of every row of the table on every task, for one routed model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from protocol.errors import Code, Refused
from router.model.routed_model import RoutedModel
from router.pool.pool import ExpertPool
from tests.lab.contenders import Bundles, Contender
from tests.lab.exact import exact
from tests.lab.world import Row

# A method that these experts cannot be routed by is left out, and the table says why; all else is a fault.
LEFT_OUT = (Code.STATISTICS_MISSING, Code.KIND_UNSUPPORTED)


@dataclass(frozen=True)
class Scores:
    """What one trial found."""

    exact: dict[str, dict[str, float]] = field(default_factory=dict)
    """Share of rows answered exactly, by row of the table and by task."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why rows are missing."""

    def joined(self, other: "Scores") -> "Scores":
        """Put two parts of a trial together."""
        return Scores(self.exact | other.exact, self.skipped | other.skipped)


def evaluate(
    model: RoutedModel,
    rows: Mapping[str, Sequence[Row]],
    contenders: Sequence[Contender],
    pools: Mapping[Bundles, Callable[[], ExpertPool]] | None = None,
) -> Scores:
    """Ask every contender the same questions.

    Args:
        model: The base with its experts.
        rows: Test rows by task.
        contenders: Rows of the table.
        pools: Other forms of the experts, made when a contender needs them.
    """
    every = [row for each in rows.values() for row in each]
    scores, made = Scores(), dict[Bundles, ExpertPool]()
    for contender in contenders:
        if contender.bundles != "experts" and contender.bundles not in made:
            made[contender.bundles] = (pools or {})[contender.bundles]()
        with holding(model, made.get(contender.bundles)):
            try:
                right = iter(exact(model, every, contender.choice))
            except Refused as error:
                if error.code not in LEFT_OUT:
                    raise
                scores.skipped[contender.name] = error.message
                continue
        scores.exact[contender.name] = {task: sum(next(right) for _ in each) / len(each) for task, each in rows.items()}
    return scores


@contextmanager
def holding(model: RoutedModel, pool: ExpertPool | None) -> Iterator[None]:
    """Have a model hold another pool for a while; None for its own."""
    before = model.generation
    if pool is not None:
        model.generation = replace(before, pool=pool)
    try:
        yield
    finally:
        model.generation = before
