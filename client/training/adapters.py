"""What is trained beside a frozen base: an expert of any kind, through PEFT where PEFT has it."""

from collections.abc import Mapping
from pathlib import Path

from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from protocol.adapter_config import TASKS
from protocol.adapters import BottleneckModule, Ia3Module, Module
from protocol.bundle import ADAPTER_WEIGHTS
from protocol.errors import Code, Refused
from protocol.files.atomic import new_folder
from protocol.spec import Architecture, Recipe
from router.base.device_map import is_offloaded
from router.base.linear import find_linear, seeming_at_hand
from router.base.loading import Base
from router.training.bottleneck import attach_bottlenecks, detach_bottlenecks, save_bottlenecks


def put_on(base: Base, recipe: Recipe, modules: Mapping[str, Module]) -> "Tuner":
    """Put an untrained expert on a base model, whose linear modules are replaced until it is taken off.

    Raises:
        Refused: `MODULE_UNKNOWN`, or `KIND_UNSUPPORTED` for DoRA on a base whose weights are not all at hand.
    """
    if recipe.kind == "dora" and is_offloaded(base.model):
        raise Refused(
            Code.KIND_UNSUPPORTED,
            "A DoRA expert cannot be trained here: PEFT needs all of the base's weights, and some are offloaded.",
            "Give more with --max-memory, hold the base in fewer bits with --quantise, or take another --kind.",
        )
    if recipe.kind == "bottleneck":
        return BottleneckTuner(base.model, modules)
    return PeftTuner(base.model, _config(recipe, modules, base.architecture), modules)


class PeftTuner:
    """An expert in the making, on the base that PEFT wrapped for it."""

    def __init__(self, model: nn.Module, config: PeftConfig, modules: Mapping[str, Module]) -> None:
        linears = [find_linear(model, path) for path in modules]
        # GPT-2's Conv1D; PEFT finds out by itself, but says so with a warning.
        config.fan_in_fan_out = any(isinstance(linear, Conv1D) for linear in linears)
        with seeming_at_hand(linears):
            self.model: PeftModel = get_peft_model(model, config)

    def save(self, folder: Path) -> None:
        """Write an expert's weights into a new folder, whole or not at all."""
        with new_folder(folder) as partial:
            self.model.save_pretrained(str(partial), save_embedding_layers=False)
            for path in partial.iterdir():  # PEFT also writes a card, and a configuration that nobody signed
                if path.name != ADAPTER_WEIGHTS:
                    path.unlink()

    def take_off(self) -> None:
        """Leave the base as it was."""
        self.model.unload()


class BottleneckTuner:
    """A bottleneck adapter in the making, which PEFT does not have."""

    def __init__(self, model: nn.Module, modules: Mapping[str, Module]) -> None:
        self.model = model
        self._placed = attach_bottlenecks(
            model, {path: module for path, module in modules.items() if isinstance(module, BottleneckModule)}
        )

    def save(self, folder: Path) -> None:
        """Write an expert's weights into a new folder, whole or not at all."""
        with new_folder(folder) as partial:
            save_bottlenecks(self._placed, partial)

    def take_off(self) -> None:
        """Leave the base as it was."""
        detach_bottlenecks(self.model, self._placed)


Tuner = PeftTuner | BottleneckTuner
"""What is trained in its `model`, and saved."""


def _config(recipe: Recipe, modules: Mapping[str, Module], architecture: Architecture) -> PeftConfig:
    targets, task = list(modules), TASKS[architecture]
    if recipe.kind == "ia3":
        inputs = [path for path, each in modules.items() if isinstance(each, Ia3Module) and each.side == "input"]
        return IA3Config(target_modules=targets, feedforward_modules=inputs, task_type=task)
    # The library's alpha is annotated int, and used as a factor.
    return LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, bias="none", use_rslora=recipe.kind == "rslora",
        use_dora=recipe.kind == "dora", target_modules=targets, task_type=task,
    )  # fmt: skip
