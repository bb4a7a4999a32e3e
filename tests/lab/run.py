"""Trials side by side: worker processes of one thread each, and a queue that keeps them busy."""

import json
import math
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import torch

from tests.lab.contenders import Bundles, Contender, among, contenders
from tests.lab.evaluate import Scores
from tests.lab.experts import read_seconds
from tests.lab.routes import Traced
from tests.lab.trial import Trial, score, store, trace_routes, train_base, train_gates, train_multitask, train_one
from tests.lab.world import Task

AT_ONCE = 8
"""Rows of the table that one worker scores before it takes up something else."""
GATED = ("phatgoose", "nnls-gates")
"""Rows that depend on how gates are trained."""
Say = Callable[[str], object]
_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


class Named(Protocol):
    """What has a name to be told apart by."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Workshop:
    """Worker processes, and somebody to tell how far they are."""

    workers: Executor
    tell: Say
    began: float = field(default_factory=time.monotonic)

    def give(self, work: Callable[_Given, _Made], *given: _Given.args, **named: _Given.kwargs) -> Future[_Made]:
        """Have a worker do something."""
        return self.workers.submit(work, *given, **named)

    def say(self, trial: Named, sentence: str) -> None:
        """Say how far a trial is."""
        self.tell(f"{time.monotonic() - self.began:5.0f} s  {trial.name}: {sentence}")


@contextmanager
def workshop(workers: int, tell: Say) -> Iterator[Workshop]:
    """Start workers; what they have not begun is dropped when something fails."""
    # A forked process would share the threads and locks of the libraries that are loaded here.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin) as processes:
        try:
            yield Workshop(processes, tell)
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            raise


def _begin() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # libraries' notes to programmers


@dataclass(frozen=True)
class Cost:
    """Seconds of CPU that training took, an expert in the mean."""

    expert: float
    gates: dict[int, float]
    """By steps."""


@dataclass(frozen=True)
class Outcome:
    """What came of one trial."""

    trial: Trial
    tasks: list[Task]
    scores: Scores
    """With every expert."""
    core: list[Task]
    by_pool: dict[int, Scores]
    """With the first n experts only, on the tasks of the smallest pool."""
    by_steps: dict[int, Scores]
    """What routes by gates, with gates that were trained for so many steps."""
    traced: dict[str, Traced]
    """Routing beside the oracle's."""
    cost: Cost
    """Of training the experts."""


@dataclass(frozen=True)
class Scope:
    """What is looked at."""

    methods: Sequence[str] = ()
    """As in `contenders`."""
    pools: Sequence[int] = ()
    """Sizes of pools to compare, too."""
    gate_steps: Sequence[int] = ()
    """Steps of gate training to compare, too."""
    maps: Path | None = None
    """Folder of heat maps of routing; without it, routes are not looked at."""


def run_all(trials: Sequence[Trial], shop: Workshop, scope: Scope) -> list[Outcome]:
    """Carry out trials; a trial waits for its own parts alone. Routes are looked at with the first seed alone."""
    unseen = replace(scope, maps=None)
    scopes = [scope if trial.seed == trials[0].seed else unseen for trial in trials]
    with ThreadPoolExecutor(len(trials)) as threads:
        return list(threads.map(lambda trial, scope: run(trial, shop, scope), trials, scopes))


def run(trial: Trial, shop: Workshop, scope: Scope) -> Outcome:
    """Carry out one trial."""
    base = shop.give(train_base, trial).result()
    shop.say(trial, "the base model is there")
    experts = trial.world.experts
    rows, tasks = contenders(experts, _width(base), scope.methods), trial.world.tasks()
    bundles = _trained(shop, trial, base, {row.bundles for row in rows})
    shop.say(trial, f"{len(experts)} experts are there")
    scores = _scored(shop, trial, base, bundles, tasks, rows)
    store(scores, trial.folder / "scores" / f"{trial.name}.json")
    shop.say(trial, f"{len(scores.exact)} rows are scored")
    smallest = experts[: min(scope.pools, default=0)]
    core = [task for task in trial.world.tasks(smallest) if task.family != "novel"]
    by_pool, by_steps = {}, {}
    cost = Cost(_spent(bundles["experts"], "expert"), {trial.recipe.gate_steps: _spent(bundles["experts"], "gates")})
    for size in scope.pools:
        fewer = among([row for row in rows if " k=" not in row.name], experts[:size])
        by_pool[size] = _scored(shop, trial, base, bundles, core, fewer)
        store(by_pool[size], trial.folder / "scores" / f"{trial.name}-of-{size}.json")
        shop.say(trial, f"pool of {size} is scored")
    gate_rows = [row for row in rows if row.name in GATED]
    for steps in scope.gate_steps if gate_rows else ():
        made = [
            shop.give(train_gates, trial, base, *each, steps) for each in zip(experts, bundles["experts"], strict=True)
        ]
        gated: dict[Bundles, list[Path]] = {"experts": [one.result() for one in made]}
        cost.gates[steps] = _spent(gated["experts"], "gates")
        by_steps[steps] = _scored(shop, trial, base, gated, tasks, gate_rows)
        shop.say(trial, f"gates of {steps} steps are scored")
    traced = {}
    if scope.maps is not None:
        traced = shop.give(trace_routes, trial, base, bundles["experts"], scores, scope.maps / trial.name).result()
    return Outcome(trial, tasks, scores, core, by_pool, by_steps, traced, cost)


def _trained(shop: Workshop, trial: Trial, base: Path, wanted: Iterable[Bundles]) -> dict[Bundles, list[Path]]:
    """Have the experts trained, and those baselines that rows ask for."""
    experts = trial.world.experts
    given: dict[Bundles, list[Future[Path]]] = {
        "experts": [shop.give(train_one, trial, base, expert) for expert in experts]
    }
    if "joint" in wanted:
        given["joint"] = [shop.give(train_one, trial, base, expert, joint=True) for expert in experts]
    if "multitask" in wanted:
        given["multitask"] = [shop.give(train_multitask, trial, base)]
    if "multitask-wide" in wanted:
        given["multitask-wide"] = [shop.give(train_multitask, trial, base, wide=True)]
    return {kind: [made.result() for made in making] for kind, making in given.items()}


def _scored(
    shop: Workshop,
    trial: Trial,
    base: Path,
    bundles: Mapping[Bundles, Sequence[Path]],
    tasks: Sequence[Task],
    rows: Sequence[Contender],
) -> Scores:
    parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    given = [shop.give(score, trial, base, bundles, tasks, part) for part in parts]
    return reduce(Scores.joined, [each.result() for each in given], Scores())


def _spent(bundles: Sequence[Path], phase: str) -> float:
    told = [seconds[phase] for seconds in map(read_seconds, bundles) if phase in seconds]
    return statistics.fmean(told) if told else math.nan


def _width(base: Path) -> int:
    config = json.loads((base / "config.json").read_bytes())
    return int(config.get("d_model") or config["hidden_size"])
