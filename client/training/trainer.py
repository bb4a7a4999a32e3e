"""Hugging Face's Trainer, over the few parameters that a phase trains."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer

from client.training import distributed
from protocol.errors import Code, Refused
from router.base.tokens import IGNORED

TRAINABLE = "trainable.safetensors"


def diverged(name: str) -> Refused:
    """Say that training ended in NaN or infinity."""
    return Refused(
        Code.NOT_FINITE,
        f"Training the {name} diverged: its loss or weights are not finite.",
        "Run it again with a lower --learning-rate.",
    )


class PhaseTrainer(Trainer):
    """The Trainer, with checkpoints of the trainable tensors alone."""

    def take_off(self) -> None:
        """Leave the model as it came; here nothing was put on it."""

    def _save_checkpoint(self, model: "nn.Module", trial: Any) -> None:
        before = os.umask(0o077)  # what is learnt from private data is its owner's alone
        try:
            super()._save_checkpoint(model, trial)
        finally:
            os.umask(before)

    def _save(self, output_dir: str | None = None, _state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trainable(self.model), folder / TRAINABLE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: "nn.Module | None" = None) -> None:
        restore(model or self.model, Path(resume_from_checkpoint) / TRAINABLE)

    def _load_best_model(self) -> None:
        restore(self.model, Path(self.state.best_model_checkpoint) / TRAINABLE)

    def compute_loss(
        self,
        model: "nn.Module",
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - the Trainer's signature
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Weigh a part of a batch by its share of the tokens that the whole batch learns.

        T5 and others take the count of those tokens, and average over the part all the same.
        """
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        whole = self.args.gradient_accumulation_steps == distributed.processes() == 1
        if whole or num_items_in_batch is None or not self._averages:
            return found
        labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
        share = (labels != IGNORED).sum() / num_items_in_batch
        return (found[0] * share, found[1]) if return_outputs else found * share

    @cached_property
    def _averages(self) -> bool:
        """Whether the model averages its loss over what it is given, whatever count it is told."""
        ids = torch.tensor([[3, 5, 2]], device=self.args.device)
        with torch.no_grad():
            plain, told = (
                self.model(input_ids=ids, labels=ids, **count).loss
                for count in ({}, {"num_items_in_batch": torch.tensor(1000, device=ids.device)})
            )
        return bool(told > plain / 2)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002 - the Trainer's signature
        """Count nothing: the Trainer's estimate walks over all modules, a tenth of a small model's step."""
        return 0


def trainable(model: "nn.Module") -> dict[str, torch.Tensor]:
    """Collect the trainable tensors of a model by name."""
    return {
        name: parameter.detach().contiguous() for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def restore(model: "nn.Module", path: Path) -> None:
    """Put saved trainable tensors back; frozen ones stay as they are."""
    result = model.load_state_dict(load_file(path), strict=False)
    if result.unexpected_keys:
        raise ValueError(f"{path} holds {result.unexpected_keys[0]}, which the model lacks")
