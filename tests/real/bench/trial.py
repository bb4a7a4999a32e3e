"""One trial: a suite, a base and a seed, from rows to scores; parts that a worker process can carry out.

What a part makes lies under the bench's folder, by content, and is found there the next time.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from protocol.bundle import open_bundle
from protocol.files.atomic import write_whole
from protocol.spec import Dtype, Recipe
from router.base.fingerprint import fingerprint
from router.model.routed_model import RoutedModel
from router.pool.pool import ExpertPool
from tests.lab.experts import found_pool, train_expert
from tests.lab.routes import Traced
from tests.lab.trial import assemble
from tests.lab.world import Row as LabRow
from tests.real.base import real_base
from tests.real.bench import controls, fresh, growth, oracle, suite
from tests.real.bench.beside import beside
from tests.real.bench.contributors import Contributor, Size
from tests.real.bench.instructions import Instructed, instructed
from tests.real.bench.lower import remembering, remembering_requests
from tests.real.bench.pace import BATCHES, pace
from tests.real.bench.questions import Question
from tests.real.bench.score import Asked, Scored, score
from tests.real.bench.shares import Told, estimate
from tests.real.tasks.task import Row

RECIPE = Recipe(
    rank=8, alpha=16.0, learning_rate=2e-3, warmup_ratio=0.2, expert_steps=48, gate_steps=16, batch_size=8,
    eval_every=24, held_out=0.08, max_input_tokens=160, max_target_tokens=128, statistics_rows=160,
)  # fmt: skip
"""Learning rate and warm-up are of the first trials on this base; steps and rows are what two cores can give 36
experts in an hour. Chosen on experts' own rows alone."""
MULTITASK_TIMES = 6
"""Times an expert's steps that the one for everybody's rows is trained, if there are as many experts."""
BATCH_OF_TEXT = 4
"""Rows a step of who contributes running text, whose rows are as much longer."""


@dataclass(frozen=True)
class Trial:
    """What decides everything about one trial."""

    base: str
    """As `tests.real.base.real_base` takes it."""
    layers: tuple[int, int] | None
    size: Size
    seed: int
    folder: Path
    recipe: Recipe = RECIPE
    dtype: Dtype = "bfloat16"
    """What the base computes in while experts are trained, and while the oracle's are chosen: on a CPU with AMX faster.

    All that a table shows is of float32.
    """

    @property
    def name(self) -> str:
        """Names the trial where several are talked of."""
        return f"{self.base}, {self.size}, seed {self.seed}"

    @property
    def suite(self) -> suite.Suite:
        """What is trained on and asked."""
        return _suite(self.size, self.seed, self.folder)

    @property
    def model(self) -> str:
        """What the product loads for the base."""
        return _model(self.base)

    @property
    def pool(self) -> Path:
        """Folder of the experts: another base, other layers, another recipe or another dtype, another folder."""
        facts = json.dumps(
            [_fingerprint(self.model), self.layers, self.recipe.model_dump(), self.dtype], sort_keys=True
        )
        return self.folder / f"pool-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"

    @property
    def scores(self) -> Path:
        """Folder of what was scored."""
        return self.pool / f"scores-{self.suite.digest}-{self.seed}"


_suite = cache(suite.load)
_model = cache(real_base)


@cache
def _fingerprint(model: str) -> dict[str, str | None]:
    return fingerprint(model).model_dump()


def prepare(trial: Trial) -> None:
    """Draw the suite and found the pool."""
    _ = trial.suite
    found_pool(trial.pool, trial.model, trial.recipe, trial.layers)


def train_one(trial: Trial, contributor: Contributor) -> Path:
    """Train one expert, as `greylag-client train` does.

    Returns:
        Its bundle's folder.
    """
    return _train(trial, contributor.name, trial.suite.private[contributor.name], _own_terms(contributor))


def train_part(trial: Trial, contributor: Contributor) -> Path:
    """Train one of those into whom a contributor was split, for as many steps as the rows are fewer.

    Returns:
        Its bundle's folder.
    """
    whole = trial.suite.private[contributor.name.rsplit(".", 1)[0]]
    rows = whole[contributor.turn :: growth.PARTS]
    steps = trial.recipe.expert_steps // growth.PARTS
    overrides = _own_terms(contributor) | {"expert_steps": steps, "eval_every": steps}
    return _train(trial, contributor.name, rows, overrides, "parts")


def _own_terms(contributor: Contributor) -> dict[str, object]:
    batch: dict[str, object] = {"batch_size": BATCH_OF_TEXT} if contributor.document else {}
    return {"rank": contributor.rank, **batch}


def train_multitask(trial: Trial) -> Path:
    """Train one expert on everybody's rows, which nobody may do who keeps them.

    Returns:
        Its bundle's folder.
    """
    suite, recipe = trial.suite, trial.recipe
    rows = [row for each in suite.known for row in suite.private[each.name]]
    steps = recipe.expert_steps * min(MULTITASK_TIMES, len(suite.known))
    # Nobody routes by its gates.
    overrides: dict[str, object] = {"expert_steps": steps, "gate_steps": 4, "eval_every": steps}
    return _train(trial, "multitask", rows, overrides)


def _train(
    trial: Trial, name: str, rows: Sequence[Row], overrides: dict[str, object], apart: str = "", **order: Any
) -> Path:
    private: list[LabRow] = [{"input": row.input, "target": row.targets[0]} for row in rows]
    place = trial.pool, trial.model, name, private, trial.seed, f"{trial.seed}/{apart}".rstrip("/")
    return train_expert(*place, overrides=overrides, dtype=trial.dtype, **order).folder


@cache
def put_together(trial: Trial, folders: tuple[Path, ...], dtype: Dtype = "float32") -> RoutedModel:
    """Put experts on the base, on the CPU, once a process.

    The layers below theirs are computed once a batch, not once a method.
    """
    model = _assembled(trial, folders, dtype)
    remembering_requests(model)
    if trial.layers is not None:
        remembering(model, trial.layers[0])
    return model


def _assembled(trial: Trial, folders: tuple[Path, ...], dtype: Dtype = "float32") -> RoutedModel:
    public = trial.pool / f"public-{trial.suite.digest}.txt"
    texts = (row.input for row in trial.suite.public)
    write_whole(public, "".join(f"{' '.join(text.split())}\n" for text in texts).encode())
    return assemble(trial.model, [open_bundle(folder) for folder in folders], public, trial.pool / "base.json", dtype)


def time_methods(trial: Trial, experts: tuple[Path, ...], methods: Sequence[str]) -> dict[int, dict[str, float]]:
    """Time routed generation over the base's, by method, for batches of experts' own requests of several sizes."""
    model, known = _assembled(trial, experts), {each.task for each in trial.suite.known if not each.document}
    inputs = [question.rows[0].input for question in trial.suite.questions if question.name in known]
    return {size: pace(model, inputs[:size], methods) for size in BATCHES if size <= len(inputs)}


def trace_routes(trial: Trial, experts: tuple[Path, ...], found: Mapping[str, Scored]) -> dict[str, Traced]:
    """Compare routing with the oracle's on the confirming half."""
    questions = [question for question in trial.suite.questions if question.half == "confirming"]
    return beside(_assembled(trial, experts), questions, found, trial.scores.with_suffix(".plots"))


def score_one(trial: Trial, experts: tuple[Path, ...], multitask: Path | None, asked: Asked) -> Scored:
    """Score a row of the table on every question; what was scored before is read."""
    model = put_together(trial, experts)
    pools = controls.pools(model, trial.seed)
    if multitask is not None:
        pools["multitask"] = lambda: put_together(trial, (multitask,)).generation.pool
    return score(model, trial.suite.questions, asked, pools, trial.scores)


def score_fresh(trial: Trial, question: Question) -> Scored:
    """Train a question an expert on public rows, and score it; what was scored before is read."""
    asked = fresh.one_row(question)
    base = put_together(trial, ())

    def pool() -> ExpertPool:
        rows = fresh.nearest(base.features.embedder, question, trial.suite.public)
        overrides: dict[str, object] = {"expert_steps": fresh.STEPS, "gate_steps": 4, "eval_every": fresh.STEPS}
        folder = _train(trial, fresh.NAME, rows, overrides, asked.name, share=())
        return _assembled(trial, (folder,)).generation.pool

    return score(base, [question], asked, {fresh.NAME: pool}, trial.scores / fresh.NAME)


def heat(trial: Trial, experts: tuple[Path, ...], expert: str) -> Scored:
    """Score an expert alone on the first rows of every question, for the oracle's sake."""
    model = put_together(trial, experts, trial.dtype)
    return score(model, oracle.first_rows(trial.suite.questions), oracle.alone(expert), {}, trial.scores / "heats")


def read_instructions(trial: Trial, experts: tuple[Path, ...]) -> list[Instructed]:
    """Solve experts' own documents under all instructions of their tasks."""
    suite, model = trial.suite, put_together(trial, experts)
    return instructed(model, suite.questions, {each.name: each.task for each in (*suite.known, *suite.further)})


def estimate_shares(trial: Trial, experts: tuple[Path, ...]) -> dict[str, Told]:
    """Solve the rows of every question for the experts that they are a mixture of."""
    suite, model = trial.suite, put_together(trial, experts)
    tasks = {each.name: each.task for each in (*suite.known, *suite.further)}
    return {question.name: estimate(model, question, tasks) for question in suite.questions}
