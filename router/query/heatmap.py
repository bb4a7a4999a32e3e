"""Heat maps of who answered, as a picture and as a page to point at."""

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from protocol.errors import Code, Refused
from router.query.answer import Answer, Answered
from router.query.attribution import Panel, best_experts, expert_shares, module_shares, oracle_divergence, token_weights

_SHOWN = 5
"""Experts that a token's mark names."""
_LABEL = 28
"""Letters of a name that a picture has room for."""


def save_png(panels: Sequence[Panel], experts: Sequence[str], path: Path) -> None:
    """Draw which expert served which module, one panel a group of requests.

    As Figure 3 of arXiv 2402.05859: modules downwards, experts across, colour is mean weight, up to the largest of all
    panels, dashed lines around the oracle's expert. Experts are named in pool order.

    Raises:
        Refused: `REQUEST_INVALID` for a panel without routes.
    """
    import matplotlib as mpl  # noqa: PLC0415 - a second of import that only pictures need

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    shares = [module_shares(panel.routes, experts) for panel in panels]
    if empty := [panel.title for panel, modules in zip(panels, shares, strict=True) if not modules]:
        raise Refused(
            Code.REQUEST_INVALID,
            f"No module chose an expert for {empty[0]!r:.200}, so there is nothing to draw.",
            "Choose a method and a release with experts, or leave --png out.",
        )
    rows = max(len(modules) for modules in shares)
    width = 2.0 + len(panels) * (0.9 + 0.28 * len(experts))
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 1.8 + 0.17 * rows), squeeze=False, layout="constrained")
    maps = [np.stack(list(modules.values())) for modules in shares]
    largest = max(weights.max() for weights in maps)
    for axis, panel, modules, weights in zip(axes[0], panels, shares, maps, strict=True):
        image = axis.imshow(weights, vmin=0, vmax=largest, cmap="viridis", aspect="auto")
        axis.set_title("\n".join(_short(line) for line in panel.title.splitlines()), fontsize=9, parse_math=False)
        names = [_short(name) for name in experts]
        axis.set_xticks(range(len(experts)), names, rotation=90, fontsize=7, parse_math=False)
        # Methods differ in which modules they route, so a panel has its neighbour's labels only if they are its own.
        labelled = axis is axes[0][0] or list(modules) != list(shares[0])
        axis.set_yticks(range(len(modules)), list(modules) if labelled else [""] * len(modules), fontsize=6)
        if panel.oracle is not None:
            for edge in (panel.oracle - 0.5, panel.oracle + 0.5):
                axis.axvline(edge, color="red", linestyle="--", linewidth=1)
    figure.colorbar(image, ax=axes[0].tolist(), shrink=0.6, label="mean routing weight")
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def save_page(panels: Sequence[Panel], answered: Answered, path: Path) -> None:
    """Write one HTML page that needs nothing else: shares, heat maps, and every token's experts."""
    routed = dict.fromkeys(f"release {answer.release}, method {answer.method}" for answer in answered.answers)
    document = {
        "about": f"{len(answered.answers)} requests, {'; '.join(routed)}, {len(answered.experts)} experts",
        "experts": answered.experts,
        "shares": list(expert_shares([route for panel in panels for route in panel.routes], answered.experts).items()),
        "panels": [_panel(panel, answered.experts) for panel in panels],
        "requests": [_request(answer, len(answered.experts)) for answer in answered.answers],
    }
    # Names and tokens are strangers' text: "<" would end the script that carries them.
    data = json.dumps(document, separators=(",", ":")).replace("<", "\\u003c")
    path.write_text(files("router.query").joinpath("trace.html").read_text("utf-8").replace("@DATA@", data), "utf-8")


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"


def _panel(panel: Panel, experts: Sequence[str]) -> dict[str, object]:
    modules = module_shares(panel.routes, experts)
    notes = []
    if (divergence := oracle_divergence(panel, len(experts))) is not None:
        given = math.exp(-divergence)
        notes.append(f"KL(oracle || routing) {divergence:.2f} nats: the oracle's expert was given {given:.1%}.")
    if panel.score is not None:
        notes.append(f"Score {panel.score:g}.")
    return {
        "title": panel.title,
        "oracle": panel.oracle,
        "notes": notes,
        "modules": list(modules),
        "weights": [[round(weight, 4) for weight in shares.tolist()] for shares in modules.values()],
    }


def _request(answer: Answer, experts: int) -> dict[str, object]:
    inputs = len(answer.input_tokens)
    tokens = []
    for position, text in enumerate((*answer.input_tokens, *answer.output_tokens)):
        weights = token_weights(answer.routes, position, inputs, experts)
        best = [] if weights is None else best_experts(weights, _SHOWN)
        tokens.append({"text": text, "experts": [(at, round(weight, 4)) for at, weight in best]})
    return {"input": tokens[:inputs], "output": tokens[inputs:]}
