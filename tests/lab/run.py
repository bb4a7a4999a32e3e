"""Trials side by side: worker processes of one thread each, and a queue that keeps them busy."""

import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from tests.lab.contenders import Bundles, Contender, among, contenders
from tests.lab.evaluate import Scores
from tests.lab.trial import Trial, score, store, train_base, train_multitask, train_one
from tests.lab.world import Task

AT_ONCE = 8
"""Rows of the table that one worker scores before it takes up something else."""
Say = Callable[[str], object]
_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Workshop:
    """Worker processes, and somebody to tell how far they are."""

    workers: Executor
    tell: Say
    began: float = field(default_factory=time.monotonic)

    def give(self, work: Callable[_Given, _Made], *given: _Given.args, **named: _Given.kwargs) -> Future[_Made]:
        """Have a worker do something."""
        return self.workers.submit(work, *given, **named)

    def say(self, trial: Trial, sentence: str) -> None:
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
class Outcome:
    """What came of one trial."""

    trial: Trial
    tasks: list[Task]
    scores: Scores
    """With every expert."""
    core: list[Task]
    by_pool: dict[int, Scores]
    """With the first n experts only, on the tasks of the smallest pool."""


def run_all(trials: Sequence[Trial], shop: Workshop, wanted: Sequence[str], pools: Sequence[int]) -> list[Outcome]:
    """Carry out trials; a trial waits for its own parts alone.

    Args:
        trials: What to do.
        shop: Who does it.
        wanted: As in `contenders`.
        pools: Sizes of pools to compare, too.
    """
    with ThreadPoolExecutor(len(trials)) as threads:
        return list(threads.map(lambda trial: run(trial, shop, wanted, pools), trials))


def run(trial: Trial, shop: Workshop, wanted: Sequence[str] = (), pools: Sequence[int] = ()) -> Outcome:
    """Carry out one trial; as `run_all`."""
    base = shop.give(train_base, trial).result()
    shop.say(trial, "the base model is there")
    experts = trial.world.experts
    rows, tasks = contenders(experts, _width(base), wanted), trial.world.tasks()
    bundles = _trained(shop, trial, base, {row.bundles for row in rows})
    shop.say(trial, f"{len(experts)} experts are there")
    scores = _scored(shop, trial, base, bundles, tasks, rows)
    store(scores, trial.folder / "scores" / f"{trial.name}.json")
    shop.say(trial, f"{len(scores.exact)} rows are scored")
    core = [task for task in trial.world.tasks(experts[: min(pools)]) if task.family != "novel"] if pools else []
    by_pool = {}
    for size in pools:
        fewer = among([row for row in rows if " k=" not in row.name], experts[:size])
        by_pool[size] = _scored(shop, trial, base, bundles, core, fewer)
        store(by_pool[size], trial.folder / "scores" / f"{trial.name}-of-{size}.json")
        shop.say(trial, f"pool of {size} is scored")
    return Outcome(trial, tasks, scores, core, by_pool)


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


def _width(base: Path) -> int:
    config = json.loads((base / "config.json").read_bytes())
    return int(config.get("d_model") or config["hidden_size"])
