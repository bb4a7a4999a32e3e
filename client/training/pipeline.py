"""From private files to a trained expert with gates, in one resumable run.

Each part (expert, gates, record) is written beside its place and renamed whole, so a run that was
stopped anywhere continues with the first part that is not there.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import set_seed

from client.data.examples import Examples, read_examples
from client.progress import Report
from client.runs import history
from client.runs.record import ADAPTER, RECORD, RunRecord, coarse
from client.training import adapters, distributed, gates, phase, statistics, trainer
from client.training.imported_adapter import write_adapter
from client.training.plan import TrainingPlan
from client.training.sequence_packing import check_packing
from protocol.bundle import GATES
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.files.atomic import write_whole
from router.base.device_map import is_offloaded
from router.base.linear import find_linear
from router.base.loading import Base, load_base
from router.training.gated_linear import attach_gates, gate_tuners


def train(plan: TrainingPlan, folder: Path, report: Report) -> None:
    """Train an expert and its gates; continues where an earlier try was stopped.

    Raises:
        Refused: A code of the data, `BASE_UNREADABLE`, `SETTINGS_INVALID`, `MODULE_UNKNOWN`, `KIND_UNSUPPORTED`,
            `NOT_FINITE` or `NO_EFFECT`.
    """
    request = plan.request
    if request.device == "cuda" and not torch.cuda.is_available():
        raise Refused(Code.SETTINGS_INVALID, "There is no CUDA device here.", "Leave out --device cuda.")
    folder.mkdir(parents=True, exist_ok=True)
    base = load_base(
        plan.workspace.settings.base, device=distributed.join(request.device), max_memory=request.max_memory,
        dtype=request.dtype, quantise=request.quantise,
    )  # fmt: skip
    if is_offloaded(base.model):
        plan = _for_offloading(plan)
    if plan.request.recompute and not base.model.supports_gradient_checkpointing:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"A model of the type {base.model.config.model_type} cannot compute activations again, which --recompute "
            "and an offloaded base ask for.",
            "Give a smaller --micro-batch, --quantise 4bit, or more with --max-memory.",
        )
    if request.packing:
        check_packing(base)
    examples = read_examples(plan.source, base.tokenizer, base.architecture, plan.recipe, positions=base.positions)
    run = _Run(plan, folder, base, examples, report)
    if not (folder / ADAPTER).is_dir():
        run.make_expert()
    if not (folder / GATES).is_file():
        run.train_gates()
    if distributed.leads():
        run.finish()


def _for_offloading(plan: TrainingPlan) -> TrainingPlan:
    """Compute activations again: else the backward pass would want every weight that was fetched for the forward."""
    if plan.request.privacy is not None:
        raise Refused(
            Code.SETTINGS_INVALID,
            "--epsilon goes without an offloaded base: each example is seen once, and all weights are kept for that.",
            "Give more with --max-memory, or hold the base in fewer bits with --quantise.",
        )
    return replace(plan, request=replace(plan.request, recompute=True))


@dataclass(frozen=True)
class _Run:
    """What every part of a run is made from."""

    plan: TrainingPlan
    folder: Path
    base: Base
    examples: Examples
    report: Report

    def make_expert(self) -> None:
        """Train the expert, with its gates if both are trained together, or take one that was trained elsewhere."""
        plan, base, adapter = self.plan, self.base, self.plan.adapter
        if adapter is not None:
            # It may come from another base: this tells what it is worth.
            phase.measure(self._phase("base"), base.model, base.tokenizer, self.examples)
            distributed.once(lambda: write_adapter(adapter, self.folder / ADAPTER))
            return
        set_seed(plan.request.seed)
        linears, rest = {path: find_linear(base.model, path) for path in plan.modules}, (self.examples, self.report)
        expert = adapters.put_on(base, plan.recipe, plan.modules)
        if plan.request.joint:
            self._save_gates(gates.train(self._phase("joint"), base, gate_tuners(base.model, linears), *rest))
        else:
            phase.run(self._phase("expert"), expert.model, base.tokenizer, *rest)
        _check_finite(trainer.trainable(expert.model), "expert")
        distributed.once(lambda: expert.save(self.folder / ADAPTER))
        expert.take_off()

    def train_gates(self) -> None:
        """Train the gates of an expert that lies in the run's folder."""
        gated = attach_gates(self.base.model, self.folder / ADAPTER, self.plan.modules)
        self._save_gates(gates.train(self._phase("gates"), self.base, gated, self.examples, self.report))

    def finish(self) -> None:
        """Write what the bundle tells beside the expert, then the record, and throw the checkpoints away."""
        plan, folder, request = self.plan, self.folder, self.plan.request
        if not (plan.sharing.folder(folder) / GATES).is_file():
            statistics.write(plan.sharing, folder, self.base, self.examples.train, list(plan.modules), self.report)
        record = RunRecord(
            name=plan.name, pool=plan.workspace.pool.digest, recipe=plan.recipe, modules=dict(plan.modules),
            dtype="float32" if plan.adapter is None else plan.adapter.dtype, adopted=plan.adapter is not None,
            joint=request.joint, privacy=request.privacy, steps=history.steps(folder),
            losses=history.losses(folder, last=request.privacy is not None), rows=coarse(self.examples.rows),
        )  # fmt: skip
        self.examples.note(folder)
        write_whole(folder / RECORD, strict_json.dumps(record.model_dump(mode="json")))
        for checkpoints in history.PHASES:
            shutil.rmtree(folder / checkpoints, ignore_errors=True)

    def _save_gates(self, vectors: Mapping[str, torch.Tensor]) -> None:
        _check_finite(vectors, "gates")
        distributed.once(lambda: gates.save(vectors, self.folder / GATES))

    def _phase(self, name: str) -> phase.Phase:
        return phase.Phase(name, self.folder / name, self.plan.request, self.plan.recipe, self._noise)

    @cached_property
    def _noise(self) -> float:
        recipe, privacy = self.plan.recipe, self.plan.request.privacy
        if privacy is None:
            return 0.0
        from client.training.differential_privacy import noise_for  # noqa: PLC0415 - opacus, which is an extra

        steps = recipe.expert_steps + recipe.gate_steps
        return noise_for(privacy, len(self.examples.train), recipe.batch_size, steps)


def _check_finite(tensors: Mapping[str, torch.Tensor], name: str) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise trainer.diverged(name)
