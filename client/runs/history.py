"""How the losses went: kept in the run's folder, one file a phase, when the phase is over."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from protocol.files import strict_json
from protocol.files.atomic import write_whole

PHASES = ("base", "expert", "gates", "joint")
"""`base` is not trained, and `joint` stands for expert and gates in one."""
COMPLETE = "complete"
"""Marker of a whole checkpoint, written last."""
OPENINGS = "openings.json"
"""Mean opening of each module's gate, 0 to 1, in the model's order."""
TRAINED, HELD_OUT = "loss", "eval_loss"
"""What the Trainer calls a loss on the rows of the last steps, and one on the held-out rows."""


def newest_checkpoint(phase: Path) -> Path | None:
    """Find the newest whole checkpoint in a phase's folder; a kill may have left others."""
    whole = (marker.parent for marker in phase.glob(f"checkpoint-*/{COMPLETE}"))
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Tell after which step a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def write(phase: Path, log: Iterable[Mapping[str, Any]]) -> None:
    """Keep what the Trainer logged of a phase, beside its folder."""
    points = [{name: entry[name] for name in ("step", TRAINED, HELD_OUT) if name in entry} for entry in log]
    kept = [point for point in points if TRAINED in point or HELD_OUT in point]
    write_whole(_file(phase.parent, phase.name), strict_json.dumps(kept))


def read(run: Path, phase: str) -> list[dict[str, float]]:
    """Read the points of a phase, each with a step and one or both losses; empty if it never was."""
    path = _file(run, phase)
    points: list[dict[str, float]] = json.loads(path.read_bytes()) if path.is_file() else []
    return points


def steps(run: Path) -> dict[str, int]:
    """Count the steps that each phase of training took."""
    logs = {phase: read(run, phase) for phase in PHASES[1:]}
    return {phase: int(log[-1]["step"]) for phase, log in logs.items() if log}


def losses(run: Path, *, last: bool = False) -> dict[str, float]:
    """Sum up a run: the held-out loss of the base alone, and the best (or last) of each phase."""
    found = {}
    for phase in PHASES:
        seen = [(point["step"], point[HELD_OUT]) for point in read(run, phase) if HELD_OUT in point]
        if seen and seen[0][0] == 0:
            found["base"] = seen.pop(0)[1]  # before its first step an expert adds nothing
        if seen:
            found[phase] = seen[-1][1] if last else min(loss for _, loss in seen)
    return {phase: round(loss, 3) for phase, loss in found.items()}


def _file(run: Path, phase: str) -> Path:
    return run / f"{phase}.losses.json"
