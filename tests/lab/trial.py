"""One trial: a suite, a seed and an architecture, from a base model that is not there yet to scores.

Its parts are functions that a worker process can carry out, each of minutes at most. What a part makes lies under the
laboratory's folder, by content, and is found there the next time.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

from protocol.bundle import Bundle, open_bundle
from protocol.files.atomic import write_whole
from protocol.spec import Architecture, Policy, Recipe, Routing
from router.base.batching import encode_pairs
from router.base.fingerprint import fingerprint
from router.model.cap import Allowed, fit_cap
from router.model.routed_model import RoutedModel
from router.model.score_tables import Probe, ScoreTables
from router.pool.calibration import METHOD, added
from router.pool.pool import ExpertPool
from tests.lab import routes
from tests.lab.base import make_base
from tests.lab.contenders import DEFAULT_K, WIDER, Bundles, Contender
from tests.lab.evaluate import Scores, evaluate
from tests.lab.experts import RECIPE, found_pool, train_expert
from tests.lab.world import Row, Size, Task, World
from tests.lab.written_means import with_means, written_means

EXAMPLES = 800
"""Rows of one contributor."""
PUBLIC_TEXTS = 1024
CAPPED_TEXTS = 256
"""Public lines on which nobody may take too much."""
WRITTEN_INPUTS = 200
"""Inputs that the model answers for the paper's form of means."""


@dataclass(frozen=True)
class Trial:
    """What decides everything about one trial."""

    size: Size
    suite_seed: int
    seed: int
    architecture: Architecture
    folder: Path
    """Of the laboratory: bases, pools and scores of all trials."""
    recipe: Recipe = RECIPE
    test_rows: int = 25
    """Rows of each task that is scored."""

    @property
    def name(self) -> str:
        """Names the trial among others in one folder."""
        return f"{self.size}-{self.suite_seed}-{self.seed}-{self.architecture}"

    @property
    def world(self) -> World:
        """The suite; kept beside the trial, which goes from process to process as it was written down."""
        return _world(self.suite_seed, self.size)

    def rows(self, tasks: Sequence[Task]) -> dict[str, list[Row]]:
        """Give test rows by task."""
        return {task.name: self.world.rows(task, self.seed, self.test_rows) for task in tasks}

    def pool_folder(self, base: Path) -> Path:
        """Name the folder of the experts on a base: another base or recipe, another folder."""
        facts = json.dumps([fingerprint(str(base)).model_dump(), self.recipe.model_dump()], sort_keys=True)
        return self.folder / f"pool-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


@cache
def _world(suite_seed: int, size: Size) -> World:
    return World(suite_seed, size)


def train_base(trial: Trial) -> Path:
    """Train the base model and found a pool over it.

    Returns:
        The base model's folder.
    """
    base = make_base(trial.world, trial.architecture, trial.seed, trial.folder, _tell)
    found_pool(trial.pool_folder(base), base, trial.recipe)
    return base


def train_one(trial: Trial, base: Path, expert: str, *, joint: bool = False) -> Path:
    """Train one expert.

    Returns:
        Its bundle's folder.
    """
    rows = trial.world.training(expert, trial.seed, EXAMPLES)
    apart = "joint" if joint else ""
    return train_expert(trial.pool_folder(base), base, expert, rows, trial.seed, apart, joint=joint).folder


def train_gates(trial: Trial, base: Path, expert: str, bundle: Path, steps: int) -> Path:
    """Train other gates for an expert that is there, for so many steps.

    Returns:
        The folder of a bundle with both.
    """
    rows = trial.world.training(expert, trial.seed, EXAMPLES)
    order = {"adapter": str(bundle), "overrides": {"gate_steps": steps}}
    return train_expert(trial.pool_folder(base), base, expert, rows, trial.seed, f"gates-{steps}", **order).folder


def train_multitask(trial: Trial, base: Path, *, wide: bool = False) -> Path:
    """Train one expert on everybody's rows, which nobody may do who keeps them: as many rows a step as all have.

    Returns:
        Its bundle's folder.
    """
    experts, recipe = trial.world.experts, trial.recipe
    rows = [row for expert in experts for row in trial.world.training(expert, trial.seed, EXAMPLES)]
    # Nobody routes by its gates. One step of Adam would leave a gate constant wherever all inputs have one sign.
    overrides: dict[str, object] = {"batch_size": recipe.batch_size * len(experts), "gate_steps": 10}
    if wide:
        overrides |= {"rank": recipe.rank * WIDER, "alpha": recipe.alpha * WIDER}
    name = "multitask-wide" if wide else "multitask"
    return train_expert(trial.pool_folder(base), base, name, rows, trial.seed, overrides=overrides).folder


def score(
    trial: Trial,
    base: Path,
    bundles: Mapping[Bundles, Sequence[Path]],
    tasks: Sequence[Task],
    contenders: Sequence[Contender],
) -> Scores:
    """Score some rows of the table.

    Args:
        trial: Whose rows are asked.
        base: The base model's folder.
        bundles: Folders of the experts' bundles, and of what other rows run on.
        tasks: What is asked.
        contenders: Rows of the table.
    """

    public = write_public(trial)

    def put_on(kind: Bundles) -> RoutedModel:
        return assemble(base, [open_bundle(folder) for folder in bundles[kind]], public)

    def pool(kind: Bundles) -> ExpertPool:
        return put_on(kind).generation.pool

    model = put_on("experts")
    pools: dict[Bundles, Callable[[], ExpertPool]] = {kind: partial(pool, kind) for kind in bundles}
    pools["written-means"] = partial(_with_written_means, trial, model)
    pools["capped"] = partial(capped, model, trial.world.public(trial.seed, CAPPED_TEXTS))
    return evaluate(model, trial.rows(tasks), contenders, pools)


def write_public(trial: Trial) -> Path:
    """Write the text that anybody may know."""
    file = trial.folder / f"public-{trial.name}.txt"
    write_whole(file, "".join(f"{text}\n" for text in trial.world.public(trial.seed, PUBLIC_TEXTS)).encode())
    return file


def trace_routes(
    trial: Trial, base: Path, bundles: Sequence[Path], scores: Scores, folder: Path
) -> dict[str, routes.Traced]:
    """Compare routing with the oracle's on all held-out tasks; heat maps go to a folder."""
    model = assemble(base, [open_bundle(bundle) for bundle in bundles])
    tasks = [task for task in trial.world.tasks() if task.family != "held_in"]
    return routes.trace(model, trial.rows(tasks), tasks, scores, folder)


def assemble(
    base: Path | str, bundles: Sequence[Bundle], public: Path | None = None, cache: Path | None = None
) -> RoutedModel:
    """Put experts on a base model, on the CPU and in this order.

    `public` is the text that anybody may know; beside `cache`, a base's fingerprint, what was worked out of it is kept.
    """
    model = RoutedModel.from_base(str(base), public=public, cache=cache, device="cpu")
    for bundle in bundles:
        model.append(bundle)
    return model


def _tell(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


def _with_written_means(trial: Trial, model: RoutedModel) -> ExpertPool:
    pool = model.generation.pool
    means = {}
    for expert in pool.experts:
        inputs = [row["input"] for row in trial.world.training(expert.name, trial.seed, WRITTEN_INPUTS)]
        means[expert.name] = written_means(model.base, inputs, list(expert.modules))
    return with_means(pool, means)


def capped(model: RoutedModel, texts: Sequence[str], most: float = Policy().max_capture) -> ExpertPool:
    """Have a model's experts, each of a contributor of its own, with the caps of releases by gates and by means.

    Args:
        model: The experts.
        texts: What an operator would try experts on.
        most: The largest share of it, in fair shares.
    """
    pool = ExpertPool()
    for expert in model.generation.pool.experts:
        pool = pool.add(replace(expert, contributor=expert.name))
    probe = Probe(encode_pairs(model.base, texts, texts))
    tables = ScoreTables(model.features.mixtures.reader)
    ways = [Routing(method=method, k=DEFAULT_K) for method in (METHOD, "nnls-request")]
    caps = [fit_cap(model.features, tables, pool, way, Allowed(most), probe) for way in ways]
    return pool.calibrated(added(*(cap.biases for cap in caps)))


def store(scores: Scores, path: Path) -> None:
    """Keep scores, task by task, for tables and plots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(scores), indent=1) + "\n")
