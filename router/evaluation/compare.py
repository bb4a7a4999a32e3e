"""Every method on the same rows, with the same prompts and the same decoding.

Oracle and Best Individual are those of arXiv 2402.05859, section 4.2, after arXiv 2302.03202: every expert answers
all tasks alone; the oracle then takes the best expert of each task, Best Individual the one with the best mean over
tasks. Both look at the answers, so neither is a method that anybody could run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from protocol.errors import Code, Refused
from router.base.batching import read_prompts
from router.evaluation.contenders import BEST_INDIVIDUAL, ORACLE
from router.evaluation.metrics import ACCURACY
from router.evaluation.prompts import BatchLimits, Prompts, write_prompts
from router.evaluation.rows import Task
from router.evaluation.scoring import Judged, judge
from router.model.planner import plan
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice

_SKIPPED = (Code.STATISTICS_MISSING, Code.KIND_UNSUPPORTED)
"""What some experts of a release may lack for a method, and nobody's mistake."""


class Score(NamedTuple):
    """How one method did on one task."""

    metrics: dict[str, float]
    """Means over the rows, in [0, 1]."""
    ties: int = 0
    """Rows in which the first of equally likely choices was taken."""
    expert: str | None = None
    """Who answered alone, where the method is one that takes the best expert."""


class ComparisonObserver(Protocol):
    """Looks on while methods run."""

    def begin(self, task: str, method: str, rows: int) -> None:
        """A method is about to answer the rows of a task."""

    def advance(self, rows: int) -> None:
        """So many more of them are answered."""


class Memory(Protocol):
    """Remembers what was scored before."""

    def find(self, task: Task, choice: RoutingChoice) -> Score | None:
        """Return an earlier score of the same rows by the same method."""

    def keep(self, task: Task, choice: RoutingChoice, score: Score, judged: Sequence[Judged]) -> None:
        """Remember one."""


@dataclass(frozen=True)
class Comparison:
    """What came of it."""

    tasks: tuple[Task, ...]
    main: str
    """The measure of what is written freely and says nothing else; what is chosen has its accuracy."""
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    """By method and task, in the order in which they were asked for."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why methods could not run, by method."""
    cut: dict[str, int] = field(default_factory=dict)
    """Rows whose inputs were cut, by task."""

    def measure(self, task: Task) -> str:
        """Name the measure of a task that counts."""
        return ACCURACY if task.ranked else task.metric or self.main

    def figure(self, task: Task, score: Score) -> float:
        """Return the one figure of a task that counts, in [0, 1]."""
        return score.metrics[self.measure(task)]

    def mean(self, method: str) -> float:
        """Return the mean over tasks of a method's figures."""
        scores = self.scores[method]
        return sum(self.figure(task, scores[task.name]) for task in self.tasks) / len(self.tasks)


@dataclass(frozen=True)
class Comparing:
    """Runs methods over tasks.

    Args:
        model: The routed model.
        choice: How all methods route, but for the method.
        limits: How many rows at once, and how long.
        main: Measure of what is written freely, one of `router.evaluation.metrics.METRICS`.
        progress: Looks on.
        memory: What was scored before, if that is remembered.
    """

    model: RoutedModel
    choice: RoutingChoice
    limits: BatchLimits
    main: str
    progress: ComparisonObserver
    memory: Memory | None = None

    def run(self, tasks: Sequence[Task], methods: Sequence[str]) -> Comparison:
        """Let every method answer every task.

        A method whose statistics the release's experts do not tell is skipped, and the reason kept; where that is true
        of all, the first one's is raised.

        Raises:
            Refused: `DATA_TOO_LONG`, `EXPERT_UNKNOWN`, `EXPERTS_EXHAUSTED`, `RELEASE_UNKNOWN`, `NOT_FINITE`, or
                what else a method refuses.
            Unavailable: `MEMORY_FULL`, or `STORAGE_FULL`.
        """
        found = Comparison(tuple(tasks), self.main)
        prompts = {task.name: write_prompts(self.model.base, task, self.limits.of(task)) for task in tasks}
        found.cut.update({name: each.cut for name, each in prompts.items() if each.cut})
        choices = {method: replace(self.choice, method=method) for method in methods}
        plain = {method: choice for method, choice in choices.items() if method not in (ORACLE, BEST_INDIVIDUAL)}
        # All before the first of them runs for hours.
        refusals = {method: refusal for method, choice in plain.items() if (refusal := self._try(choice))}
        if len(refusals) == len(methods):
            first = next(iter(refusals.values()))
            raise Refused(first.code, f"None of the methods can run. {first.message}", first.hint)
        found.skipped.update({method: refusal.message for method, refusal in refusals.items()})
        alone: dict[str, dict[str, Score]] = {}
        if len(plain) < len(methods):
            alone = {each: self._scores(prompts, found.tasks, each) for each in self._experts()}
        for method in methods:
            if method in found.skipped:
                continue
            if method in plain:
                found.scores[method] = self._scores(prompts, found.tasks, method)
            else:
                found.scores[method] = _best(found, alone, each_task=method == ORACLE)
        return found

    def _try(self, choice: RoutingChoice) -> Refused | None:
        try:
            plan(self.model.features, self.model.held, read_prompts(self.model.base, ["a"]), [choice])
        except Refused as error:
            if error.code not in _SKIPPED:
                raise
            return error
        return None

    def _experts(self) -> list[str]:
        pool = self.model.held.find(self.choice.release).pool.allowing(self.choice.allow, self.choice.deny)
        if not pool.experts:
            raise Refused(
                Code.EXPERTS_EXHAUSTED, "There is no expert to take the best of.", "Leave out oracle, best-individual."
            )
        return [f"expert:{expert.full_name}" for expert in pool.experts]

    def _scores(self, prompts: dict[str, Prompts], tasks: Sequence[Task], method: str) -> dict[str, Score]:
        return {task.name: self._score(prompts[task.name], task, method) for task in tasks}

    def _score(self, prompts: Prompts, task: Task, method: str) -> Score:
        choice = replace(self.choice, method=method)
        self.progress.begin(task.name, method, len(task.rows))
        if self.memory is not None and (known := self.memory.find(task, choice)) is not None:
            self.progress.advance(len(task.rows))
            return known
        judged = judge(self.model, task, prompts, choice, self.limits.of(task), self.progress.advance)
        names = judged[0].metrics
        means = {name: sum(each.metrics[name] for each in judged) / len(judged) for name in names}
        score = Score(means, sum(each.tied for each in judged))
        if self.memory is not None:
            self.memory.keep(task, choice, score, judged)
        return score


def _best(found: Comparison, alone: dict[str, dict[str, Score]], *, each_task: bool) -> dict[str, Score]:
    """Take the best expert of each task, or of all; the first of equals."""

    def best_for(tasks: Sequence[Task]) -> str:
        return max(alone, key=lambda each: sum(found.figure(task, alone[each][task.name]) for task in tasks))

    taken = {task.name: best_for([task] if each_task else found.tasks) for task in found.tasks}
    return {task: alone[method][task]._replace(expert=method.removeprefix("expert:")) for task, method in taken.items()}
