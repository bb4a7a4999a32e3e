"""`make demo`: a whole federation on one machine, from private data to a routed answer."""

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from deploy.demo import hostile, measure
from deploy.demo.federation import Federation, contribute, federation, join, watch
from deploy.demo.processes import perform, stop_all
from deploy.demo.screen import Screen, accuracy_table, refusal_table
from deploy.demo.world import World
from router.query import terminal
from router.query.attribution import Panel
from router.query.client import ask
from router.query.heatmap import save_page, save_png
from router.query.request import RoutingChoice

SETTLE_S = 60.0
"""How long the router may take to follow the last release, in seconds."""


def main() -> None:
    """Run the demo and leave report.json, heat maps and every log in the folder."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where everything goes")
    parser.add_argument(
        "--at-once", type=int, default=min(os.cpu_count() or 1, 4), help="contributors that train at once"
    )
    options = parser.parse_args()
    began = time.monotonic()
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    console = Console(width=None if sys.stdout.isatty() else 140)
    world = World()
    screen = Screen(world.contributors, console)
    with federation(folder, screen.say) as cast:
        _train(cast, world, screen, options.at_once)
        report = _measure(cast, world, console)
    report["seconds"] = round(time.monotonic() - began, 1)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"Done in {report['seconds']:.0f} s; see report.json and heat-map.html in {options.folder}.")


def _train(cast: Federation, world: World, screen: Screen, at_once: int) -> None:
    """Let everybody join and contribute, a few at a time, while the router follows."""
    stopped = threading.Event()

    def one(contributor: str) -> None:
        data = join(cast, contributor, world)
        said = contribute(cast, contributor, data, lambda event: screen.progress(contributor, event))
        screen.done(contributor, f"verdict: {said}")

    names = [contributor.name for contributor in world.contributors]
    with screen.live(), ThreadPoolExecutor(at_once + 1) as pool:
        watcher = pool.submit(watch, stopped, cast.router, screen.say)
        try:
            for finished in [pool.submit(one, name) for name in names]:
                finished.result()
            _settle(cast, len(names))
        except BaseException:
            stop_all()
            raise
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
        watcher.result()


def _settle(cast: Federation, count: int) -> None:
    deadline = time.monotonic() + SETTLE_S
    while len(ask(cast.router, ["a"], RoutingChoice("base"), max_new_tokens=1).experts) < count:
        if time.monotonic() > deadline:
            raise RuntimeError("The router did not follow the last release.")
        time.sleep(0.5)


def _measure(cast: Federation, world: World, console: Console) -> dict[str, object]:
    """Ask the running router, attack the coordinator, and show both."""
    names = [one.name for one in world.contributors]
    own, composed = measure.held_out(cast.router, world, names), measure.composed(cast.router, world)
    refusals = hostile.attempt_all(cast, names[0], cast.folder / "hostile")
    console.print(accuracy_table("Exact match on each contributor's held-out requests", own))
    console.print(accuracy_table("Exact match on requests that need two contributors", composed))
    console.print(refusal_table(refusals))
    release = _explain(cast, world, names, console)
    return {
        "schema": 1,
        "contributors": len(names),
        "release": release,
        "accuracy": measure.average(own),
        "composed": measure.average(composed),
        "refused": [{"case": refusal.case, "code": refusal.code} for refusal in refusals],
    }


def _explain(cast: Federation, world: World, names: Sequence[str], console: Console) -> int:
    """Answer one question with its experts, and draw who served what for everybody's requests."""
    first = world.composable()[0]
    fallback = (first, world.composed(first, 1, measure.HELD_OUT_SEED)[0])
    pair, question = measure.first_exact(cast.router, world) or fallback
    console.print(f"\nA request that needs {pair[0]} and {pair[1]}, and who answers it:", highlight=False)
    answered = ask(cast.router, [question.input], max_new_tokens=measure.MAX_NEW_TOKENS, explain=True)
    console.print(f"[bold]greylag-router ask --explain[/] {question.input!r}", highlight=False)
    console.print(f"{answered.answers[0].text}   [dim](expected: {question.target})[/]", highlight=False)
    terminal.explain(console, answered, answered.answers[0])
    owners = tuple(expert.split("/")[0] for expert in answered.experts)
    panels, answers = [], []
    for name in names:
        inputs = [one.input for one in world.held_out(name, 16, measure.HELD_OUT_SEED)]
        explained = ask(cast.router, inputs, max_new_tokens=measure.MAX_NEW_TOKENS, explain=True)
        routes = [route for answer in explained.answers for route in answer.routes]
        panels.append(Panel(f"requests of\n{name}", routes, owners.index(name)))
        answers.append(explained.answers[0])
    save_png(panels, owners, cast.folder / "heat-map.png")
    save_page(panels, replace(answered, experts=owners, answers=tuple(answers)), cast.folder / "heat-map.html")
    return answered.answers[0].release


if __name__ == "__main__":
    perform(main)
