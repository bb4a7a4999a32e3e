"""Who answered: the experts that each token was given at each module, and pictures of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from router.attach import reads_input
from router.gate import Choice
from router.pool import ModuleExperts


@dataclass(frozen=True, eq=False)
class ModuleRoute:
    """What one module chose for the tokens of one request."""

    module: str
    reads_input: bool
    """Whether the module sees the input's tokens; else the output's."""
    experts: NDArray[np.int64]
    """[s, k] positions in the pool."""
    weights: NDArray[np.float32]
    """[s, k], each row sums to 1."""


class RouteRecorder:
    """Collects the choices of a batch, module by module, over prefill and every decoding step.

    Args:
        positions: Position in the pool by an expert's bundle digest.
    """

    def __init__(self, positions: Mapping[str, int]) -> None:
        self._positions = positions
        self._chunks: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}

    def record(self, path: str, module: ModuleExperts, choice: Choice, shape: torch.Size) -> None:
        """Keep one module's choice for an activation [b, s, d]."""
        tokens, k = shape[:-1].numel(), choice.experts.shape[1]
        known = np.array([self._positions[expert.digest] for expert in module.experts])
        experts = known[choice.experts.expand(tokens, k).cpu().numpy()].reshape(*shape[:-1], k)
        weights = choice.weights.float().expand(tokens, k).cpu().numpy().reshape(*shape[:-1], k)
        self._chunks.setdefault(path, []).append((experts, weights))

    def routes(self, row: int, input_mask: Sequence[bool], output_length: int, *, causal: bool) -> list[ModuleRoute]:
        """Put together what one row of the batch was given.

        Args:
            row: Position in the batch.
            input_mask: For each input position whether it holds a token (else padding).
            output_length: Tokens that the model wrote for this row.
            causal: Whether the model is decoder-only; every module then sees input and output alike.
        """
        kept_inputs = np.flatnonzero(np.array(input_mask))
        found = []
        for path, chunks in self._chunks.items():
            experts = np.concatenate([experts[row] for experts, _ in chunks])
            weights = np.concatenate([weights[row] for _, weights in chunks])
            if causal:
                # The last token that was written is never read again.
                outputs = len(input_mask) + np.arange(max(output_length - 1, 0))
                kept = np.concatenate([kept_inputs, outputs])
            else:
                kept = kept_inputs if reads_input(path) else np.arange(output_length)
            found.append(ModuleRoute(path, causal or reads_input(path), experts[kept], weights[kept]))
        return found


def expert_shares(routes: Iterable[ModuleRoute], experts: Sequence[str]) -> dict[str, float]:
    """Share of all routing weight that each expert was given.

    Returns:
        Shares by expert, largest first; they sum to 1 unless nothing was routed.
    """
    total = np.zeros(len(experts))
    for route in routes:
        np.add.at(total, route.experts, route.weights)
    whole = total.sum() or 1.0
    shares = {name: float(value / whole) for name, value in zip(experts, total, strict=True)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def module_shares(routes: Iterable[ModuleRoute], experts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Mean weight of each expert at each module.

    Returns:
        [n] by module path, in the order in which modules first ran.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    for route in routes:
        np.add.at(sums.setdefault(route.module, np.zeros(len(experts))), route.experts, route.weights)
    return {module: values / (values.sum() or 1.0) for module, values in sums.items()}


def save_heat_map(panels: Mapping[str, Sequence[ModuleRoute]], experts: Sequence[str], path: Path) -> None:
    """Draw which expert served which module, one panel a group of requests.

    As Figure 3 of arXiv 2402.05859: modules downwards, experts across, colour is mean weight.

    Args:
        panels: Routes by title of the panel.
        experts: Names in pool order.
        path: PNG file to write.
    """
    import matplotlib as mpl  # noqa: PLC0415 - a second of import that only pictures need

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    shares = {title: module_shares(routes, experts) for title, routes in panels.items()}
    rows = max(len(modules) for modules in shares.values())
    width = 2.0 + len(panels) * (0.9 + 0.28 * len(experts))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(width, 1.8 + 0.17 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, modules) in zip(axes[0], shares.items(), strict=True):
        image = axis.imshow(np.stack(list(modules.values())), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(experts)), experts, rotation=90, fontsize=7)
        axis.set_yticks(range(len(modules)), list(modules), fontsize=6)
    figure.colorbar(image, ax=axes[0].tolist(), shrink=0.6, label="mean routing weight")
    figure.savefig(path, dpi=150)
    plt.close(figure)
