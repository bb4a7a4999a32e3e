"""`make demo`: a whole federation on one machine, from private data to a routed answer."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from deploy.demo import hostile, measure, world
from deploy.demo.federation import Federation, federation
from deploy.demo.processes import perform, stop_all
from deploy.demo.screen import Screen, accuracy_table, refusal_table
from router.query import terminal
from router.query.attribution import Panel
from router.query.client import ask
from router.query.heatmap import save_page, save_png

EXAMPLES = 512
"""Rows in a contributor's private file."""
TRAIN_SEED = 1
DRAWN = 16
"""Requests of each contributor in the heat maps."""


def play(folder: Path) -> dict[str, object]:
    """Run the demo and leave heat maps and every log in the folder."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    screen = Screen(list(world.CONTRIBUTORS), console)
    with federation(folder, screen.say) as cast:
        _train(cast, screen)
        return _measure(cast, console)


def _train(cast: Federation, screen: Screen) -> None:
    """Let everybody join and contribute, a few at a time, while the router follows."""

    def one(contributor: str) -> None:
        data = cast.join(contributor, world.train(contributor, EXAMPLES, TRAIN_SEED))
        said = cast.contribute(contributor, data, lambda event: screen.progress(contributor, event))
        screen.done(contributor, f"verdict: {said}")

    with screen.bars, ThreadPoolExecutor(1 + min(os.cpu_count() or 1, 4)) as pool:
        watcher = pool.submit(cast.watch, len(world.CONTRIBUTORS))
        try:
            for finished in [*(pool.submit(one, name) for name in world.CONTRIBUTORS), watcher]:
                finished.result()
        except BaseException:
            stop_all()
            pool.shutdown(cancel_futures=True)
            raise


def _measure(cast: Federation, console: Console) -> dict[str, object]:
    """Ask the running router, attack the coordinator, and show both."""
    own, composed = measure.held_out(cast.router), measure.composed(cast.router)
    refusals = hostile.attempt_all(cast, next(iter(world.CONTRIBUTORS)), cast.folder / "hostile")
    console.print(accuracy_table("Exact match on each contributor's held-out requests", own))
    console.print(accuracy_table("Exact match on requests that need two contributors", composed))
    console.print(refusal_table(refusals))
    release = _explain(cast, console)
    return {
        "schema": 1,
        "contributors": len(world.CONTRIBUTORS),
        "release": release,
        "accuracy": measure.average(own),
        "composed": measure.average(composed),
        "refused": [{"case": case, "code": refused.code.name} for case, refused in refusals.items()],
    }


def _explain(cast: Federation, console: Console) -> int:
    """Answer one question with its experts, and draw who served what for everybody's requests."""
    pair, question = measure.composed_question(cast.router)
    answered = ask(cast.router, [question.input], max_new_tokens=measure.MAX_NEW_TOKENS, explain=True)
    answer = answered.answers[0]
    for line in (
        f"\nA request that needs {pair[0]} and {pair[1]}, and who answers it:",
        f"[bold]greylag-router ask --explain[/] {question.input!r}",
        f"{answer.text}   [dim](expected: {question.target})[/]",
    ):
        console.print(line, highlight=False)
    terminal.explain(console, answered, answer)
    owners = tuple(expert.split("/")[0] for expert in answered.experts)
    panels, answers = [], []
    for name in world.CONTRIBUTORS:
        inputs = [one.input for one in world.held_out(name, DRAWN, measure.HELD_OUT_SEED)]
        explained = ask(cast.router, inputs, max_new_tokens=measure.MAX_NEW_TOKENS, explain=True).answers
        routes = [route for each in explained for route in each.routes]
        panels.append(Panel(f"requests of\n{name}", routes, owners.index(name)))
        answers.append(explained[0])
    save_png(panels, owners, cast.folder / "heat-map.png")
    save_page(panels, replace(answered, experts=owners, answers=tuple(answers)), cast.folder / "heat-map.html")
    return answer.release


if __name__ == "__main__":
    perform("demo", play)
