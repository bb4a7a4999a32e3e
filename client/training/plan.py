"""From a request to a plan: everything that decides how an expert comes out, checked before anything is loaded.

Light, so that a finished run is recognised without torch.
"""

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from client.data.columns import DataSource, check_file
from client.runs.consent import Share, Sharing
from client.runs.record import RunRecord
from client.training.distributed import check_together, processes
from client.training.imported_adapter import Adapter, read_adapter
from client.training.modules import plan_modules
from client.training.request import TrainingRequest
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.adapters import Module
from protocol.bundle import sha256_of
from protocol.compatibility import check_told
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.spec import Name, Recipe
from protocol.statement import Document, first_invalid

PRIVATE_KINDS = ("lora", "rslora")
"""Kinds of experts that can be trained with differential privacy."""


@dataclass(frozen=True)
class TrainingPlan:
    """A request that was checked, and what follows from it, settings and pool."""

    request: TrainingRequest
    settings: ClientSettings
    pool: Pool
    name: str
    """The expert's name."""
    recipe: Recipe
    modules: Mapping[str, Module]
    """The expert's, by path."""
    adapter: Adapter | None
    """Trained elsewhere; only its gates are trained here."""
    split_key: bytes
    """The workspace's, which decides which rows are held out."""

    @property
    def source(self) -> DataSource:
        """The private files."""
        return DataSource(self.request.data, self.settings.columns, self.split_key)

    @property
    def sharing(self) -> Sharing:
        """What the bundle tells about the data; it has no part in the run's name."""
        return Sharing(self.request.share, self.settings.embedding, self.settings.share_epsilon)

    def run_id(self) -> str:
        """Name of the run's folder: equal input, equal name.

        Raises:
            Refused: `DATA_UNREADABLE`.
        """
        request = self.request
        facts = {
            "data": [_digest(path) for path in request.data],
            "split": hashlib.sha256(self.split_key).hexdigest(),
            "columns": vars(self.settings.columns),
            "base": self.pool.spec.base.model_dump(),
            "name": self.name,
            "pool": self.pool.digest,
            "recipe": self.recipe.model_dump(),
            "seed": request.seed,
            "adapter": self.adapter and self.adapter.digest,
            "joint": request.joint,
            "privacy": request.privacy and request.privacy.model_dump(),
        }
        return hashlib.sha256(strict_json.dumps(facts)).hexdigest()[:16]


def make_plan(workspace: ClientWorkspace, settings: ClientSettings, request: TrainingRequest) -> TrainingPlan:
    """Check a request and fill in what it leaves open.

    Raises:
        Refused: `SETTINGS_INVALID`, `STATISTICS_MISSING`, `RANK_OUT_OF_BOUNDS`, `KIND_UNSUPPORTED`, or a code of the
            pool's document or of the adapter.
    """
    pool = workspace.pool(settings.pool_key)
    check_told({share.statistic for share in request.share}, pool.spec)
    recipe = override(pool.spec.recipe, request.overrides)
    adapter = None if request.adapter is None else read_adapter(request.adapter, pool.spec)
    modules = plan_modules(pool.spec, recipe) if adapter is None else adapter.modules
    name = _expert_name(request.name or settings.name)
    check_together(request.device)
    _check_micro_batch(request.micro_batch, recipe)
    _check_privacy(request, recipe)
    if settings.share_epsilon is not None and {Share.MEANS, Share.ALL_MEANS} & set(request.share):
        _check_installed("dp_accounting", "Means with noise need dp-accounting")
    return TrainingPlan(request, settings, pool, name, recipe, modules, adapter, workspace.split_key())


def override(recipe: Recipe, overrides: Mapping[str, object]) -> Recipe:
    """Replace fields of a recipe; None leaves one as it is.

    Raises:
        Refused: `SETTINGS_INVALID`, naming the flag.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    return from_flags(Recipe, {**recipe.model_dump(), **given})


def from_flags(document: type[Document], fields: Mapping[str, object]) -> Document:
    """Make a recipe, or a promise, of what flags say.

    Raises:
        Refused: `SETTINGS_INVALID`, naming the flag.
    """
    try:
        return document.model_validate(fields)
    except ValidationError as error:
        name, reason = first_invalid(error)
        raise Refused(
            Code.SETTINGS_INVALID,
            f"--{name.replace('_', '-')} is wrong: {reason}.",
            "Give another value, or leave it out to take the default.",
        ) from error


def check_budget(request: TrainingRequest, finished: Iterable[RunRecord]) -> None:
    """Refuse a training that would promise less than is left: what was trained before counts, epsilon by epsilon.

    Args:
        request: What is to be trained.
        finished: All that was trained in the workspace.

    Raises:
        Refused: `BUDGET_EXHAUSTED`.
    """
    if request.privacy is None or request.max_epsilon is None:
        return
    spent = sum(record.privacy.epsilon for record in finished if record.privacy is not None)
    if spent + request.privacy.epsilon > request.max_epsilon:
        raise Refused(
            Code.BUDGET_EXHAUSTED,
            f"Training with epsilon {request.privacy.epsilon:g} passes the {request.max_epsilon:g} that all trainings "
            f"may come to; {spent:g} is spent.",
            "Raise max_epsilon, which is what an example can count on then, or train on other rows in a new workspace.",
        )


def _digest(path: Path) -> str:
    check_file(path)
    return sha256_of(path)


def _check_micro_batch(micro_batch: int | None, recipe: Recipe) -> None:
    at_once = processes() * (micro_batch or 1)
    if recipe.batch_size % at_once:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"The {at_once} examples that are in memory at once are no divisor of the batch of {recipe.batch_size}.",
            "Choose a --micro-batch, and processes, that divide it.",
        )


def _check_privacy(request: TrainingRequest, recipe: Recipe) -> None:
    """Refuse a promise that training could not keep."""
    if request.privacy is None:
        return
    if recipe.kind not in PRIVATE_KINDS:
        raise Refused(
            Code.KIND_UNSUPPORTED,
            f"Experts of kind {recipe.kind} cannot be trained with differential privacy: opacus cannot take their "
            "gradients apart into examples.",
            f"Give --kind {' or '.join(PRIVATE_KINDS)}.",
        )
    breaking = {
        "--packing, where examples share rows": request.packing,
        "--recompute, where each example is seen twice": request.recompute,
        "--share, which tells about the data as they are": bool(request.share),
        "--joint": request.joint,
        "several processes, each of which would add noise of its own": processes() > 1,
    }
    for flag, given in breaking.items():
        if given:
            raise Refused(Code.SETTINGS_INVALID, f"--epsilon goes without {flag}.", "Leave one of them out.")
    _check_installed("opacus", "Training with differential privacy needs opacus")


def _check_installed(package: str, who: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Refused(
            Code.SETTINGS_INVALID, f"{who}, which is not installed.", "Install it with: pip install 'greylag[private]'"
        )


def _expert_name(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"{name!r:.80} is no name for an expert.",
            "Use up to 64 lower-case letters, digits, dots, dashes and underscores.",
        ) from error
