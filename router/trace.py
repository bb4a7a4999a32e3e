"""Pictures and figures of who answered."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router.answer import ModuleRoute


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
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)
