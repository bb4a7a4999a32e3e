"""Gates: one vector a module, trained after the expert with everything else frozen.

Same data, objective and learning rate as the expert's, `W u + s B A u * sigmoid(v . u)` with v = 0
at the start (arXiv 2402.05859, section 3).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from client import phase
from client.progress import Report
from protocol.kinds import Module
from protocol.spec import Recipe
from router.base import Base
from router.gated import attach_gates, detach_gates

if TYPE_CHECKING:
    from client.data import Examples


def train(
    work: phase.Phase,
    base: Base,
    adapter: Path,
    modules: Mapping[str, Module],
    examples: "Examples",
    recipe: Recipe,
    report: Report,
) -> dict[str, Tensor]:
    """Train the gates of a saved expert.

    Args:
        work: The phase; names the folder of checkpoints.
        base: The base model; as it was when this returns.
        adapter: Folder with PEFT's adapter_model.safetensors.
        modules: The expert's modules by path.
        examples: Tokenised examples.
        recipe: Steps, batch and learning rate.
        report: Told after every step.

    Returns:
        Gates by tensor name `{module path}.gate`, float32 [d_in].
    """
    gated = attach_gates(base.model, adapter, modules)
    try:
        phase.run(work, base.model, base.tokenizer, examples.train, examples.held_out, recipe, report)
        return {f"{path}.gate": layer.gate.detach().to("cpu", torch.float32).clone() for path, layer in gated.items()}
    finally:
        detach_gates(base.model, gated)


def save(vectors: Mapping[str, Tensor], path: Path) -> None:
    """Write gates.safetensors whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    save_file(dict(vectors), partial, metadata={"format": "pt"})
    partial.replace(path)
