"""A picture of a run: how the losses went, and how wide each gate opens."""

import json
from pathlib import Path

from client.runs import history

PICTURE = "training.png"
_COLOURS = {"expert": "tab:blue", "gates": "tab:orange", "joint": "tab:green"}


def draw(run: Path) -> Path:
    """Draw a finished run into its folder, unless that was done before.

    Returns:
        The PNG file: losses of both phases by step, and by module the mean opening of its gate on held-out rows.
    """
    path = run / PICTURE
    if path.is_file():
        return path
    import matplotlib as mpl  # noqa: PLC0415 - a second of import that only pictures need

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    openings = json.loads((run / history.OPENINGS).read_bytes())
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, max(4.0, 1.0 + 0.14 * len(openings))), layout="constrained", width_ratios=[3, 2]
    )
    for phase, colour in _COLOURS.items():
        points = history.read(run, phase)
        for kind, style, words in ((history.TRAINED, "-", "training rows"), (history.HELD_OUT, "o--", "held-out rows")):
            seen = [(point["step"], point[kind]) for point in points if kind in point]
            if seen:
                left.plot(*zip(*seen, strict=True), style, color=colour, markersize=4, label=f"{phase}, {words}")
    left.set_xlabel("step of the phase")
    left.set_ylabel("loss, nats a token")
    left.legend()
    right.barh(range(len(openings)), list(openings.values()), color=_COLOURS["gates"])
    right.set_yticks(range(len(openings)), list(openings), fontsize=6, parse_math=False)
    right.axvline(0.5, color="black", linestyle=":", linewidth=1)  # where all gates begin
    right.set_xlim(0, 1)
    right.invert_yaxis()
    right.set_xlabel("mean opening of the gate on held-out rows")
    partial = path.with_suffix(".tmp")
    figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)
    return partial.replace(path)
