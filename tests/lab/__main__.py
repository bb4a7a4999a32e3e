"""`make bench-zeroshot`: every routing method on tasks that no expert was trained for.

Trains base models and experts (what was trained before is found again), asks every method the same questions, and
writes tables. Progress goes to stderr; the last line of stdout is one JSON document, with both architectures one line
for each.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from protocol.errors import GreylagError
from protocol.spec import Architecture
from tests.lab import plots as plotting
from tests.lab import routes, table
from tests.lab.experts import RECIPE
from tests.lab.run import GATED, Outcome, Scope, run_all, workshop
from tests.lab.trial import Trial
from tests.lab.world import Size


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, and print it."""
    options = _parser().parse_args(arguments)
    architectures = get_args(Architecture) if options.architecture == "both" else (options.architecture,)
    trials = [
        Trial(options.size, options.suite_seed, seed, architecture, options.out.resolve())
        for architecture in architectures
        for seed in range(options.seed, options.seed + options.seeds)
    ]
    with workshop(options.workers, lambda sentence: sys.stderr.write(f"{sentence}\n")) as shop:
        scope = Scope(options.methods or (), sorted(options.pools or ()), options.gate_steps, options.plots)
        outcomes = run_all(trials, shop, scope)
    for architecture in architectures:
        publish([one for one in outcomes if one.trial.architecture == architecture], options.out, options.plots)


def publish(outcomes: Sequence[Outcome], folder: Path, plots: Path | None = None) -> None:
    """Write the table of one architecture, print its document, and draw it if there is a folder for plots."""
    first = outcomes[0]
    trial, seeds = first.trial, [outcome.trial.seed for outcome in outcomes]
    summary = table.summarise([outcome.scores for outcome in outcomes], first.tasks)
    skipped = {name: reason for outcome in outcomes for name, reason in outcome.scores.skipped.items()}
    parts = [
        f"# {trial.size}, suite seed {trial.suite_seed}, seeds {seeds}, {trial.architecture}\n",
        "Exact match in percent, mean ± standard deviation over seeds.\n",
        table.markdown(summary, skipped),
    ]
    by_pool = {
        size: table.summarise([outcome.by_pool[size] for outcome in outcomes], first.core) for size in first.by_pool
    }
    for size, fewer in by_pool.items():
        parts += [f"## The first {size} experts, on the tasks of the first {min(by_pool)}\n"]
        parts += [table.markdown(fewer, {})]
    by_steps = {
        steps: table.summarise([outcome.by_steps[steps] for outcome in outcomes], first.tasks)
        for steps in first.by_steps
    }
    for steps, gated in by_steps.items():
        parts += [f"## Gates trained for {steps} steps\n", table.markdown(gated, {})]
    costs = [outcome.cost for outcome in outcomes]
    gates = {steps: [cost.gates[steps] for cost in costs] for steps in first.cost.gates}
    parts += ["## What training an expert cost\n", table.costs([cost.expert for cost in costs], gates)]
    if first.traced:
        parts += ["## Beside the oracle's routing\n", routes.markdown(first.traced)]
    path = folder / f"{trial.size}-{trial.suite_seed}-{trial.architecture}.md"
    path.write_text("\n".join(parts))
    sys.stderr.write(f"{path}\n")
    if plots is not None:
        by_steps[trial.recipe.gate_steps] = {name: row for name, row in summary.items() if name in GATED}
        drawn = plotting.Drawn(path.stem, summary, by_pool, by_steps, first.traced)
        plotting.draw(drawn, plots / path.stem)
    found = table.document(trial.size, trial.suite_seed, len(trial.world.experts), len(outcomes), summary)
    sys.stdout.write(json.dumps(found) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    say = parser.add_argument
    say("--size", choices=get_args(Size), default="tiny", help="how many experts")
    say("--architecture", choices=(*get_args(Architecture), "both"), default="encoder-decoder")
    say("--seeds", type=int, default=3, metavar="N", help="how many seeds, from --seed on")
    say("--seed", type=int, default=0, metavar="S", help="the first one")
    say(
        "--suite-seed",
        type=int,
        default=0,
        metavar="S",
        help="which words and skills; from 100 on nobody tuned on them",
    )
    say("--methods", nargs="+", metavar="NAME", help="only these rows, and oracle, best-individual; without it, all")
    say("--pools", type=int, nargs="+", metavar="N", help="compare these numbers of experts, too")
    say(
        "--gate-steps",
        type=int,
        nargs="+",
        default=[RECIPE.expert_steps // 10],
        metavar="N",
        help="compare these numbers of steps of gate training, too; without it, a tenth of the expert's",
    )
    say("--plots", type=Path, metavar="FOLDER", help="draw the tables into this folder, and routes beside the oracle's")
    say("--out", type=Path, default=Path("build/lab"), metavar="FOLDER", help="where everything lies")
    say("--workers", type=int, default=2, metavar="N", help="processes of one thread each")
    return parser


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, GreylagError, KeyboardInterrupt) as error:
        sys.stderr.write(f"error: {str(error) or 'interrupted'}\n")
        sys.exit(1)
