"""From a data file to a trained expert with gates, in one resumable run.

Each part (expert, gates, record) is written beside its place and renamed whole, so a run that was
stopped anywhere continues with the first part that is not there.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import set_seed

from client.data.examples import Examples, read_examples
from client.progress import Report
from client.runs import history
from client.runs.record import ADAPTER, RECORD, RunRecord, coarse, dump_record
from client.training import adapters, distributed, gates, phase, statistics, trainer
from client.training.imported_adapter import write_adapter
from client.training.modules import plan_modules
from client.training.plan import TrainingPlan
from client.training.sequence_packing import check_packing
from protocol.adapters import Module
from protocol.bundle import GATES
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.spec import Promise, Recipe
from router.base.device_map import is_offloaded
from router.base.linear import find_linear
from router.base.loading import Base, load_base

if TYPE_CHECKING:
    from collections.abc import Mapping


def train(plan: TrainingPlan, folder: Path, report: Report) -> None:
    """Train an expert and its gates; continues where an earlier try was stopped.

    Args:
        plan: What to train.
        folder: Folder of the run.
        report: Told after every step.

    Raises:
        Refused: A code of the data, `RANK_OUT_OF_BOUNDS`, `BASE_UNREADABLE`, `SETTINGS_INVALID`, `MODULE_UNKNOWN`,
            `KIND_UNSUPPORTED`, `NOT_FINITE` or `NO_EFFECT`.
    """
    adapter = plan.adapter
    modules = plan_modules(plan.pool.spec, plan.recipe) if adapter is None else adapter.modules
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise Refused(Code.SETTINGS_INVALID, "There is no CUDA device here.", "Leave out --device cuda.")
    folder.mkdir(parents=True, exist_ok=True)
    device, thrift = distributed.join(plan.device), plan.thrift
    base = load_base(
        plan.base, device=device, max_memory=thrift.max_memory, dtype=thrift.dtype, quantise=thrift.quantise
    )
    if is_offloaded(base.model):
        plan = _for_offloading(plan)
    if plan.thrift.recompute and not base.model.supports_gradient_checkpointing:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"A model of the type {base.model.config.model_type} cannot compute activations again, which --recompute "
            "and an offloaded base ask for.",
            "Give a smaller --micro-batch, --quantise 4bit, or more with --max-memory.",
        )
    if thrift.packing:
        check_packing(base)
    examples = read_examples(
        plan.data,
        plan.columns,
        base.tokenizer,
        base.architecture,
        plan.recipe,
        positions=base.positions,
        scratch=folder,
    )
    noise = 0.0 if plan.privacy is None else _noise(plan.privacy, plan.recipe, len(examples.train))
    if not (folder / ADAPTER).is_dir():
        if plan.joint:
            _train_jointly(plan, base, examples, modules, folder, report)
        elif adapter is None:
            _train_expert(plan, base, examples, modules, folder, report, noise)
        else:
            _measure_base(plan, base, examples, folder)
            distributed.once(lambda: write_adapter(adapter, folder / ADAPTER, plan.pool.spec))
    if not (folder / GATES).is_file():
        _train_gates(plan, base, examples, modules, folder, report, noise)
    if distributed.leads():
        _finish(plan, base, examples, modules, folder, report)


def _finish(
    plan: TrainingPlan, base: Base, examples: Examples, modules: "Mapping[str, Module]", folder: Path, report: Report
) -> None:
    """Write what the bundle tells beside the expert, then the record, and throw the checkpoints away."""
    if not (plan.sharing.folder(folder) / GATES).is_file():
        statistics.write(plan.sharing, folder, base, examples.train, list(modules), report)
    record = RunRecord(
        name=plan.name,
        pool=plan.pool.digest,
        recipe=plan.recipe,
        modules=dict(modules),
        dtype="float32" if plan.adapter is None else plan.adapter.dtype,
        adopted=plan.adapter is not None,
        joint=plan.joint,
        privacy=plan.privacy,
        steps=history.steps(folder),
        losses=history.losses(folder, last=plan.privacy is not None),
        rows=coarse(examples.rows),
    )
    write_whole(folder / RECORD, dump_record(record))
    for checkpoints in history.PHASES:
        shutil.rmtree(folder / checkpoints, ignore_errors=True)


def _for_offloading(plan: TrainingPlan) -> TrainingPlan:
    """Compute activations again: else the backward pass would want every weight that was fetched for the forward."""
    if plan.privacy is not None:
        raise Refused(
            Code.SETTINGS_INVALID,
            "--epsilon goes without an offloaded base: each example is seen once, and all weights are kept for that.",
            "Give more with --max-memory, or hold the base in fewer bits with --quantise.",
        )
    return replace(plan, thrift=replace(plan.thrift, recompute=True))


def _train_expert(
    plan: TrainingPlan,
    base: Base,
    examples: Examples,
    modules: "Mapping[str, Module]",
    folder: Path,
    report: Report,
    noise: float,
) -> None:
    set_seed(plan.seed)
    expert = adapters.put_on(base, plan.recipe, modules)
    work = replace(_phase(plan, "expert", folder), noise=noise)
    phase.run(work, expert.model, base.tokenizer, examples.train, examples.held_out, plan.recipe, report)
    _check_finite(trainer.trainable(expert.model), "expert")
    distributed.once(lambda: expert.save(folder / ADAPTER, plan.pool.spec.base.name))
    expert.take_off()


def _train_gates(
    plan: TrainingPlan,
    base: Base,
    examples: Examples,
    modules: "Mapping[str, Module]",
    folder: Path,
    report: Report,
    noise: float,
) -> None:
    work = replace(_phase(plan, "gates", folder), noise=noise)
    vectors = gates.train(work, base, folder / ADAPTER, modules, examples, plan.recipe, report)
    _check_finite(vectors, "gates")
    distributed.once(lambda: gates.save(vectors, folder / GATES))


def _train_jointly(
    plan: TrainingPlan, base: Base, examples: Examples, modules: "Mapping[str, Module]", folder: Path, report: Report
) -> None:
    set_seed(plan.seed)
    linears = {path: find_linear(base.model, path) for path in modules}
    expert = adapters.put_on(base, plan.recipe, modules)
    work = _phase(plan, "joint", folder)
    vectors = gates.train_jointly(work, base, linears, examples, plan.recipe, report)
    _check_finite(vectors | trainer.trainable(expert.model), "expert")
    distributed.once(lambda: gates.save(vectors, folder / GATES))
    distributed.once(lambda: expert.save(folder / ADAPTER, plan.pool.spec.base.name))
    expert.take_off()


def _measure_base(plan: TrainingPlan, base: Base, examples: Examples, folder: Path) -> None:
    # Gates are trained on an expert that came from elsewhere, perhaps from another base: this tells what it is worth.
    work = _phase(plan, "base", folder)
    phase.measure(work, base.model, base.tokenizer, examples.held_out, plan.recipe)


def _phase(plan: TrainingPlan, name: str, folder: Path) -> phase.Phase:
    recipe = plan.recipe
    steps = {"expert": recipe.expert_steps, "gates": recipe.gate_steps, "joint": recipe.expert_steps}.get(name, 0)
    return phase.Phase(
        name,
        folder / name,
        steps,
        plan.seed,
        plan.device,
        plan.micro_batch,
        recompute=plan.thrift.recompute,
        packing=plan.thrift.packing,
        privacy=plan.privacy,
    )


def _noise(privacy: Promise, recipe: Recipe, rows: int) -> float:
    from client.training.differential_privacy import noise_for  # noqa: PLC0415 - opacus, which is an extra

    return noise_for(privacy, rows, recipe.batch_size, recipe.expert_steps + recipe.gate_steps)


def _check_finite(tensors: "Mapping[str, torch.Tensor]", name: str) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise trainer.diverged(name)
