"""`make demo-federation`: train, evaluate, promote, calibrate; somebody late, somebody poor, a killed node, attacks."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from deploy.demo import world
from deploy.demo.processes import perform, run, wait_until
from deploy.demo.story import Example
from deploy.federation.attacks import attempt_all
from deploy.federation.cast import Cast, cast, planted
from router.query.client import ask

ROWS = {"mirror": 384, "carousel": 256, "bluebird": 192, "beekeeper": 128}
"""Contributors and the sizes of their private files."""
LATE, LATE_ROWS = "harbour", 160
KILLED = "carousel"
POOR = "quarry"
"""Whose rows are scrambled, so that its expert is good for nothing."""
SEED = 1
OPEN_S = 30.0
CALIBRATE = ("--rounds", 3, "--round-minutes", 1, "--steps", 10, "--learning-rate", 0.05)


def play(folder: Path) -> dict[str, Any]:
    """Run it, and leave every log in the folder."""
    began = time.monotonic()

    def say(who: str, what: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:6.1f} s  {who:<12} {what}\n")
        sys.stderr.flush()

    with cast(folder, say) as town:
        report = _play(town)
    return report | {"planted_strings_found": len(leaks(folder))}


def _play(town: Cast) -> dict[str, Any]:
    def join(contributor: str, rows: int) -> None:
        town.join(contributor, world.train(contributor, rows, SEED))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(join, ROWS.keys(), ROWS.values()))
    for contributor in ROWS:
        town.start(contributor)

    def meanwhile() -> None:
        """One node dies in the middle of training and comes back; somebody comes late."""
        join(LATE, LATE_ROWS)
        wait_until(lambda: KILLED in _by_contributor(town.shown(1), "state"), OPEN_S, "Nobody was asked in time.")
        town.kill(KILLED)
        town.start(LATE)
        town.start(KILLED)

    trained = town.campaign("train", open_for_s=2 * OPEN_S, meanwhile=meanwhile)
    town.settle()
    first = town.campaign("evaluate", open_for_s=OPEN_S / 3)
    calibrated = town.campaign("calibrate", *CALIBRATE, open_for_s=OPEN_S / 3)
    compared = town.campaign("evaluate", open_for_s=OPEN_S / 3)
    _contribute_poorly(town)
    town.settle()
    second = town.campaign("evaluate", open_for_s=OPEN_S / 3)
    attacks = attempt_all(town)
    answer = ask(town.router, ["please reverse it : k f a c"], max_new_tokens=8).answers[0]
    town.say("router", f"answers from release {answer.release}: {answer.text}")
    decided = town.candidates()
    bundles = [entry["facts"]["bundle"] for entry in trained["answers"] if entry["state"] == "done"]
    return {
        "schema": 1,
        "nodes": len(town.daemons),
        "campaigns": {
            "train": {"bundles": len(set(bundles)), "attempts": _by_contributor(trained, "attempts")},
            "evaluate": {
                "promoted": [row["digest"] for row in decided if row["state"] == "promoted"],
                "held_back": [row["digest"] for row in decided if row["state"] == "held_back"],
                "losses": [_losses(each) for each in (first, compared, second)],
            },
            "calibrate": {
                "loss_before": _mean(compared, "loss_release"),
                "loss_after": _mean(compared, "loss_candidate"),
                "rounds": [{"answered": each["answered"], "late": each["late"]} for each in calibrated["rounds"]],
            },
        },
        "release": answer.release,
        "attacks": attacks,
    }


def _contribute_poorly(town: Cast) -> None:
    """Somebody without a daemon submits an expert that learnt wrong answers to everybody's questions."""
    rows = [example for name in ROWS for example in world.train(name, 64, SEED + 1)]
    others = rows[7:] + rows[:7]
    data = town.join(POOR, (Example(row.input, other.target) for row, other in zip(rows, others, strict=True)))
    run("client", "contribute", "-w", town.place(POOR), "--data", data, log=town.log(POOR))
    town.say(POOR, "submitted an expert that learnt wrong answers")


def leaks(folder: Path) -> list[str]:
    """Name the files, other than the private ones, that hold a planted word: logs, stores, and what was heard."""
    words = [planted(contributor).encode() for contributor in (*ROWS, LATE, POOR)]
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "private.jsonl" and any(word in path.read_bytes() for word in words)
    ]


def _by_contributor(shown: dict[str, Any], fact: str) -> dict[str, Any]:
    return {entry["contributor"]: entry[fact] for entry in shown["answers"]}


def _losses(shown: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        contributor: {name: value for name, value in facts.items() if name.startswith("loss_")}
        for contributor, facts in _by_contributor(shown, "facts").items()
    }


def _mean(shown: dict[str, Any], loss: str) -> float:
    """Average what nodes measured on their held-out rows, in nats a token."""
    return round(fmean(facts[loss] for facts in _losses(shown).values()), 4)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(perform("demo-federation", play)) + "\n")
