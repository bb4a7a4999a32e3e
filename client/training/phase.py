"""One phase of training: the transformers Trainer over whatever is trainable in a model.

A checkpoint holds the trainable tensors, the optimizer and the state, never the frozen base. A
checkpoint counts once its marker stands; one that was cut off by a kill is thrown away on the next
start. The best checkpoint by held-out loss wins.
"""

import math
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from client.progress import Progress, Report
from client.runs import history
from client.training import distributed
from client.training.plan import TrainingRequest
from client.training.sequence_packing import pack
from client.training.trainer import TRAINABLE, PhaseTrainer, diverged, restore
from protocol.errors import Code, Refused, Unavailable
from protocol.spec import Recipe

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from client.data.examples import Examples

LOG_EVERY = 10
"""Steps between two looks at the training loss (each costs a wait for the device)."""


@dataclass(frozen=True)
class Phase:
    """What one phase trains, and where it keeps its checkpoints."""

    name: str
    """One of `history.PHASES`."""
    folder: Path
    request: TrainingRequest
    recipe: Recipe
    noise: float = 0.0
    """What keeps the request's promise of privacy, as a multiple of the norm to which gradients are clipped."""

    @property
    def steps(self) -> int:
        """Steps that the phase takes at most."""
        return {"base": 0, "gates": self.recipe.gate_steps}.get(self.name, self.recipe.expert_steps)


def run(
    phase: Phase, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", examples: "Examples", report: Report
) -> None:
    """Train, resuming from the last whole checkpoint; leaves the best weights in the model.

    In private training the last weights are left: to choose by held-out examples would tell about them.

    Raises:
        Refused: `NOT_FINITE` if training diverged.
    """
    trainer = _trainer(phase, model, tokenizer, examples)
    privacy, recipe = phase.request.privacy, phase.recipe
    if recipe.patience and privacy is None:
        trainer.add_callback(EarlyStoppingCallback(recipe.patience))
    distributed.once(lambda: sweep(phase.folder))
    last = history.newest_checkpoint(phase.folder)
    try:
        with _interruptible() as asked:
            trainer.add_callback(_Watcher(phase, report, asked))
            if last is None or history.step_of(last) < phase.steps:
                trainer.train(resume_from_checkpoint=None if last is None else str(last))
            else:  # for which the Trainer would take another step
                trainer.state = TrainerState.load_from_json(str(last / "trainer_state.json"))
                best = last if privacy else last.with_name(f"checkpoint-{trainer.state.best_global_step}")
                restore(model, best / TRAINABLE)
    except torch.OutOfMemoryError as error:
        raise Refused(
            Code.SETTINGS_INVALID,
            f"The device has too little memory for {phase.request.micro_batch or recipe.batch_size} examples at once.",
            "Give a smaller --micro-batch (the batch stays the same, in more parts), --recompute or --quantise 4bit.",
        ) from error
    finally:
        if distributed.leads():
            sweep(phase.folder)
    if asked.is_set():
        raise Unavailable(
            Code.INTERRUPTED,
            f"Training was stopped after step {trainer.state.global_step} ({phase.name}); a checkpoint of it is kept.",
            "Run the same command again: it continues there.",
        )
    trainer.take_off()
    loss = trainer.state.best_metric
    if privacy is not None:
        loss = [entry[history.HELD_OUT] for entry in trainer.state.log_history if history.HELD_OUT in entry][-1]
    if loss is None or not math.isfinite(loss):
        raise diverged(phase.name)
    distributed.once(lambda: history.write(phase.folder, trainer.state.log_history))


def measure(phase: Phase, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", examples: "Examples") -> None:
    """Note the held-out loss of a model that is not trained, as the history of a phase of no steps."""
    trainer = _trainer(phase, model, tokenizer, examples)
    trainer.evaluate()
    distributed.once(lambda: history.write(phase.folder, trainer.state.log_history))


def _trainer(
    phase: Phase, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", examples: "Examples"
) -> PhaseTrainer:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token serves
    if getattr(model, "is_quantized", False):
        vars(model)["_hf_peft_config_loaded"] = True  # the Trainer asks whether anything there can learn
    request, batch = phase.request, phase.recipe.batch_size
    options = {
        "model": model, "args": _arguments(phase), "train_dataset": examples.train, "eval_dataset": examples.held_out,
        "data_collator": pack if request.packing else DataCollatorForSeq2Seq(tokenizer),
    }  # fmt: skip
    if request.privacy is None:
        trainer = PhaseTrainer(**options)
    else:
        from client.training.differential_privacy import PrivateTrainer  # noqa: PLC0415 - opacus, which is an extra

        micro_batch = request.micro_batch or batch
        trainer = PrivateTrainer(
            **options, privacy=request.privacy, noise=phase.noise, batch=batch, micro_batch=micro_batch
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def sweep(folder: Path) -> None:
    """Throw away checkpoints that were cut off."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / history.COMPLETE).is_file():
            shutil.rmtree(checkpoint)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Tell of a first Ctrl-C, so that the step that was begun can be kept; a second one stops at once."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    alone = distributed.processes() == 1 and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield asked  # somebody else listens
        return
    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Watcher(TrainerCallback):
    """Tells how far the phase has come, marks what is whole of it, and asks for a checkpoint on Ctrl-C."""

    def __init__(self, phase: Phase, report: Report, asked: threading.Event) -> None:
        self._phase, self._report, self._asked, self._loss = phase, report, asked, None

    def on_log(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, *, logs: Any = None, **_: Any
    ) -> None:
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._report(Progress(self._phase.name, state.global_step, self._phase.steps, self._loss))
        if self._asked.is_set():
            control.should_save = control.should_training_stop = True

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        # A resumed state remembers a path; the workspace may have been moved since.
        if state.best_global_step:
            state.best_model_checkpoint = str(self._phase.folder / f"checkpoint-{state.best_global_step}")

    def on_save(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        if not distributed.leads():
            return
        newest = self._phase.folder / f"checkpoint-{state.global_step}"
        (newest / history.COMPLETE).touch(mode=0o600)
        kept = {newest.name, Path(state.best_model_checkpoint or newest).name}
        for checkpoint in self._phase.folder.glob("checkpoint-*"):
            if checkpoint.name not in kept:
                shutil.rmtree(checkpoint)


class _Arguments(TrainingArguments):
    """The Trainer's arguments, for a process that computes on one GPU, or on a base that is spread by itself."""

    @property
    def n_gpu(self) -> int:
        """With more the Trainer would give each a copy of the model, and multiply the batch."""
        return min(1, super().n_gpu)


def _arguments(phase: Phase) -> TrainingArguments:
    request, recipe = phase.request, phase.recipe
    mine, private = recipe.batch_size // distributed.processes(), request.privacy is not None
    micro_batch = request.micro_batch or mine
    return _Arguments(
        output_dir=str(phase.folder),
        max_steps=phase.steps,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=1 if private else mine // micro_batch,
        optim="adamw_torch_fused",
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=round(recipe.warmup_ratio * phase.steps),
        max_grad_norm=0.0 if private else 1.0,  # else clipped already, example by example
        eval_strategy="steps",
        eval_steps=recipe.eval_every,
        eval_on_start=phase.name in ("expert", "joint"),  # an untrained expert is the base
        save_strategy="steps",
        save_steps=recipe.eval_every,
        load_best_model_at_end=not private,
        metric_for_best_model=None if private else "eval_loss",
        greater_is_better=False,
        prediction_loss_only=True,
        logging_steps=LOG_EVERY,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available() and request.device != "cpu",
        use_cpu=request.device == "cpu",
        activation_checkpointing=request.recompute and phase.steps > 0,
        activation_checkpointing_kwargs={"use_reentrant": False},  # gradients need not reach the embeddings
        seed=request.seed,
    )
