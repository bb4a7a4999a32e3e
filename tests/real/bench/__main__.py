"""`make bench-real`: routing methods on a pre-trained base and real tasks, through the client's and the router's code.

Trains experts (what was trained before is found again, and what was cut off goes on), asks every method the same
questions, and writes tables. Progress goes to stderr; the last line of stdout is one JSON document.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import get_args

from protocol.errors import GreylagError
from protocol.spec import Dtype
from tests.lab.run import Workshop, workshop
from tests.real.bench import fresh, growth, plots, report
from tests.real.bench.contributors import Size
from tests.real.bench.findings import Findings
from tests.real.bench.oracle import finals
from tests.real.bench.rows import MULTITASK, own_tasks, rows
from tests.real.bench.score import Asked, Scored
from tests.real.bench.trial import (
    Trial,
    estimate_shares,
    heat,
    prepare,
    read_instructions,
    score_fresh,
    score_one,
    time_methods,
    trace_routes,
    train_multitask,
    train_one,
    train_part,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, and print it."""
    given = _parser().parse_args(arguments)
    trial = Trial(given.base, given.layers, given.size, given.seed, given.out.resolve())
    if given.dtype:
        trial = replace(trial, dtype=given.dtype)
    if given.steps:
        trial = replace(trial, recipe=trial.recipe.model_copy(update={"expert_steps": given.steps}))
    with workshop(given.workers, lambda sentence: sys.stderr.write(f"{sentence}\n")) as shop:
        shop.give(prepare, trial).result()
        suite = trial.suite
        shop.say(trial, f"suite {suite.digest} has {len(suite.questions)} questions")
        asked = rows(given.methods or ())
        experts, joint = _trained(shop, trial, any(row.bundles == MULTITASK for row in asked))
        sharing = shop.give(estimate_shares, trial, experts)
        # One who waits for what is trained longest holds nobody up.
        scored = _scored(shop, trial, experts, None, [row for row in asked if row.bundles != MULTITASK])
        scored += _beside(shop, trial, experts, given)
        if joint is not None:
            last = [row for row in asked if row.bundles == MULTITASK]
            scored += _scored(shop, trial, experts, joint.result(), last)
        reading = shop.give(read_instructions, trial, experts)
        timing = shop.give(time_methods, trial, experts, report.CHOICES) if given.pace else None
        tracing = None if given.methods else shop.give(trace_routes, trial, experts, {row.name: row for row in scored})
        found = Findings(
            scored,
            sharing.result(),
            reading.result(),
            timing.result() if timing else {},
            tracing.result() if tracing else {},
        )
    path = trial.scores.with_suffix(".md")
    path.write_text(report.markdown(suite, found))
    plots.draw(suite, found, trial.scores.with_suffix(".plots"))
    sys.stderr.write(f"{path}\n")
    sys.stdout.write(json.dumps(report.document(suite, given.base, found)) + "\n")


def _beside(shop: Workshop, trial: Trial, experts: tuple[Path, ...], given: argparse.Namespace) -> list[Scored]:
    """Score what methods are held against: experts alone, smaller and larger pools, fresh experts."""
    suite = trial.suite
    alone = own_tasks(suite.known) if given.no_oracle else _finals(shop, trial, experts)
    scored = _scored(shop, trial, experts, None, alone)
    if given.methods is None:
        scored += _scored(shop, trial, experts, None, growth.rows(suite.known, suite.questions))
    if given.split:
        parts = [shop.give(train_part, trial, each) for each in growth.split(suite.known)]
        folders = tuple(each.result() for each in parts)
        scored += _scored(shop, trial, folders, None, growth.split_rows(suite.known, suite.questions))
    if given.methods is None or fresh.NAME in given.methods:
        scored.append(_fresh(shop, trial))
    return scored


def _trained(
    shop: Workshop,
    trial: Trial,
    multitask: bool,  # noqa: FBT001
) -> tuple[tuple[Path, ...], Future[Path] | None]:
    """Have the experts trained, and one for everybody's rows begun if it is asked for."""
    suite = trial.suite
    making = [shop.give(train_one, trial, each) for each in (*suite.known, *suite.further)]
    joint = shop.give(train_multitask, trial) if multitask else None
    experts = []
    for each in making:
        experts.append(each.result())
        shop.say(trial, f"{len(experts)} of {len(making)} experts are there")
    return tuple(experts), joint


def _scored(
    shop: Workshop, trial: Trial, experts: tuple[Path, ...], joint: Path | None, asked: Sequence[Asked]
) -> list[Scored]:
    scoring = [shop.give(score_one, trial, experts, joint, row) for row in asked]
    scored: list[Scored] = []
    for each in scoring:
        scored.append(each.result())
        shop.say(trial, f"{len(scored)} of {len(asked)} rows are scored")
    return scored


def _fresh(shop: Workshop, trial: Trial) -> Scored:
    """Have each question answered by an expert of its own that knows public rows alone."""
    asked = fresh.asked(trial.suite.questions)
    found = [shop.give(score_fresh, trial, question) for question in asked]
    row = fresh.together(each.result() for each in found)
    shop.say(trial, f"{len(asked)} questions were asked of fresh experts")
    return row


def _finals(shop: Workshop, trial: Trial, experts: tuple[Path, ...]) -> list[Asked]:
    """Have every expert alone asked a little, and choose whom to ask more."""
    suite = trial.suite
    heats = {each.name: shop.give(heat, trial, experts, each.name) for each in suite.known}
    return finals(suite.known, suite.questions, {name: each.result() for name, each in heats.items()})


def _layers(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of layers such as 15-29")
    return int(found[1]), int(found[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.real.bench", description=__doc__)
    say = parser.add_argument
    say("--size", choices=get_args(Size), default="full", help="how many experts")
    say("--base", default="smollm2", help="a packaged base, a GGUF file, a folder or a Hugging Face id")
    say("--layers", type=_layers, default=(15, 29), metavar="FIRST-LAST", help="that experts touch; '' for all")
    say("--seed", type=int, default=0, metavar="S", help="of rows, initialisation and order")
    say("--steps", type=int, metavar="N", help="of each expert's training; without it, the recipe's")
    say("--dtype", choices=get_args(Dtype), help="of the base while experts are trained; default: bfloat16")
    say("--methods", nargs="+", metavar="NAME", help="only these rows; without it, all")
    say("--no-oracle", action="store_true", help="ask each expert alone its own task, and leave the oracle out")
    say("--split", action="store_true", help="ask a pool of three times the experts, too, each of a third of the rows")
    say("--pace", action="store_true", help="time routed generation, too (ten minutes)")
    say("--out", type=Path, default=Path("build/real/bench"), metavar="FOLDER", help="where everything lies")
    say("--workers", type=int, default=2, metavar="N", help="processes of one thread each")
    return parser


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, GreylagError, KeyboardInterrupt) as error:
        sys.stderr.write(f"error: {str(error) or 'interrupted'}\n")
        sys.exit(1)
