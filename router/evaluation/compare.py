"""Every method on the same rows, with the same prompts and the same decoding.

Oracle and Best Individual are those of arXiv 2402.05859, section 4.2, after arXiv 2302.03202: every expert answers
all tasks alone; the oracle then takes the best expert of each task, Best Individual the one with the best mean over
tasks. Both look at the answers, so neither is a method that anybody could run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from protocol.errors import Code, Refused
from router.base.batching import read_prompts
from router.evaluation.contenders import CHOSEN, ORACLE
from router.evaluation.metrics import ACCURACY
from router.evaluation.prompts import BatchLimits, Prompts, write_prompts
from router.evaluation.results import Results
from router.evaluation.rows import Task
from router.evaluation.scoring import Score, judge
from router.model.planner import plan
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice

_SKIPPED = (Code.STATISTICS_MISSING, Code.KIND_UNSUPPORTED)
"""What some experts of a release may lack for a method, and nobody's mistake."""


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
        say: Told what is about to run.
        memory: What was scored before, if that is remembered.
    """

    model: RoutedModel
    choice: RoutingChoice
    limits: BatchLimits
    main: str
    say: Callable[[str], None]
    memory: Results | None = None

    def run(self, tasks: Sequence[Task], methods: Sequence[str]) -> Comparison:
        """Let every method answer every task.

        A method whose statistics the release's experts do not tell is skipped, and the reason kept; where that is true
        of all, the first one's is raised.

        Raises:
            Refused: `DATA_TOO_LONG`, `EXPERT_UNKNOWN`, `EXPERTS_EXHAUSTED`, `RELEASE_UNKNOWN`, `NOT_FINITE`, or
                what else a method refuses.
            Unavailable: `MEMORY_FULL`, or `STORAGE_FULL`.
        """
        prompts = {task.name: write_prompts(self.model.base, task, self.limits.of(task)) for task in tasks}
        # All before the first of them runs for hours.
        refusals = {method: refusal for method in methods if (refusal := self._try(method))}
        if len(refusals) == len(methods):
            first = next(iter(refusals.values()))
            raise Refused(first.code, f"None of the methods can run. {first.message}", first.hint)
        found = Comparison(
            tuple(tasks),
            self.main,
            skipped={method: refusal.message for method, refusal in refusals.items()},
            cut={name: each.cut for name, each in prompts.items() if each.cut},
        )
        experts = self._experts() if set(methods) & set(CHOSEN) else []
        alone = {each: self._scores(prompts, found.tasks, each) for each in experts}
        for method in methods:
            if method in CHOSEN:
                found.scores[method] = _best(found, alone, each_task=method == ORACLE)
            elif method not in refusals:
                found.scores[method] = self._scores(prompts, found.tasks, method)
        return found

    def _try(self, method: str) -> Refused | None:
        if method in CHOSEN:
            return None
        try:
            choice = replace(self.choice, method=method)
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
        choice = replace(self.choice, method=method)
        return {task.name: self._score(prompts[task.name], task, choice) for task in tasks}

    def _score(self, prompts: Prompts, task: Task, choice: RoutingChoice) -> Score:
        self.say(f"{choice.method}: {task.name}, {len(task.rows)} rows")
        if self.memory is not None and (known := self.memory.find(task, choice)) is not None:
            return known
        judged = judge(self.model, task, prompts, choice, self.limits.of(task))
        means = {name: sum(each.metrics[name] for each in judged) / len(judged) for name in judged[0].metrics}
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
