"""Gates: one vector a module, trained after the expert with everything else frozen.

Same data, objective and learning rate as the expert's, `W u + s B A u * sigmoid(v . u)` with v = 0
at the start (arXiv 2402.05859, section 3). Or, to compare with it, trained together with the expert
(appendix A): routing by such gates is worse.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from client.progress import Report
from client.runs import history
from client.training import distributed, phase
from protocol.files.atomic import write_whole
from router.base.loading import Base
from router.training.gated_linear import GatedLinear, detach_gates

if TYPE_CHECKING:
    import datasets

    from client.data.examples import Examples

_LOOKED_AT = 8
"""Held-out rows on which gates are watched: hundreds of tokens, for a picture of averages."""


def train(
    work: phase.Phase, base: Base, gated: Mapping[str, GatedLinear], examples: "Examples", report: Report
) -> dict[str, Tensor]:
    """Train gates, by module path, and whatever else can learn in the model, which is left without gates.

    Returns:
        Gates by tensor name `{module path}.gate`, float32 [d_in].
    """
    try:
        phase.run(work, base.model, base.tokenizer, examples, report)
        openings = _openings(base, gated, examples.held_out)
        path = work.folder.with_name(history.OPENINGS)
        distributed.once(lambda: write_whole(path, json.dumps(openings).encode()))
        return {f"{path}.gate": layer.gate.detach().to("cpu", torch.float32).clone() for path, layer in gated.items()}
    finally:
        detach_gates(base.model, gated)


def _openings(base: Base, gated: Mapping[str, GatedLinear], rows: "datasets.Dataset") -> dict[str, float]:
    """Average, over the tokens of some rows, how wide each gate opens."""
    total, tokens = dict.fromkeys(gated, 0.0), dict.fromkeys(gated, 0)

    def watch(path: str, layer: GatedLinear, u: Tensor) -> None:
        opening = layer.opening(u)
        total[path] += float(opening.sum())
        tokens[path] += opening.numel()

    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, path=path: watch(path, layer, inputs[0]))
        for path, layer in gated.items()
    ]
    try:
        with torch.inference_mode():
            for row in rows.select(range(min(_LOOKED_AT, len(rows)))):  # one by one, so that none is padded
                batch = {name: torch.tensor([row[name]], device=base.model.device) for name in ("input_ids", "labels")}
                base.model.eval()(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: total[path] / max(tokens[path], 1) for path in gated}


def save(vectors: Mapping[str, Tensor], path: Path) -> None:
    """Write gates.safetensors whole or not at all."""
    write_whole(path, serialise(dict(vectors), {"format": "pt"}))
