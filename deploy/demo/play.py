"""The road of a demo: all contribute, the running router is measured and attacked, and questions are answered."""

import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from deploy.demo import hostile, measure
from deploy.demo.federation import Federation, federation
from deploy.demo.processes import stop_all
from deploy.demo.screen import Screen, accuracy_table, answer_table, refusal_table
from deploy.demo.story import Story
from router.query import terminal
from router.query.answer import Answered
from router.query.attribution import Panel
from router.query.client import ask
from router.query.heatmap import save_page, save_png


def play(story: Story, folder: Path) -> dict[str, object]:
    """Run a demo and leave heat maps and every log in the folder; what is trained there already is found again."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    screen = Screen(list(story.contributors), console)
    with federation(folder, story, screen.say) as cast:
        _train(cast, story, screen)
        return _measure(cast, story, console)


def _train(cast: Federation, story: Story, screen: Screen) -> None:
    """Let everybody join and contribute, a few at a time, while the router follows."""

    def one(contributor: str) -> None:
        data = cast.join(contributor, story.contributors[contributor].private)
        said = cast.contribute(contributor, data, lambda event: screen.progress(contributor, event))
        screen.done(contributor, f"verdict: {said}")

    with screen.bars, ThreadPoolExecutor(1 + min(os.cpu_count() or 1, 4)) as pool:
        watcher = pool.submit(cast.watch, len(story.contributors), contributed := threading.Event())
        try:
            for finished in as_completed([pool.submit(one, name) for name in story.contributors]):
                finished.result()
            contributed.set()
            watcher.result()
        except BaseException:
            stop_all()
            pool.shutdown(cancel_futures=True)
            raise


def _measure(cast: Federation, story: Story, console: Console) -> dict[str, object]:
    """Ask the running router, attack the coordinator, and show both."""
    own, composed = measure.held_out(cast, story), measure.composed(cast, story)
    refusals = hostile.attempt_all(cast, next(iter(story.contributors)), cast.folder / "hostile")
    counts = {len(one.held_out) for one in story.contributors.values()}, {len(asked) for asked in story.pairs.values()}
    each, pair = (" to ".join(map(str, sorted({min(found), max(found)}))) for found in counts)
    console.print(accuracy_table(f"Exact match on each contributor's held-out requests ({each} each)", own))
    console.print(accuracy_table(f"Exact match on requests that need two contributors ({pair} each)", composed))
    for sentence in measure.shortfalls(own, composed):
        console.print(sentence, highlight=False)
    console.print(refusal_table(refusals))
    _draw(cast, story, console)
    release = _explain(cast, story, console)
    return {
        "schema": 1,
        "contributors": len(story.contributors),
        "release": release,
        "accuracy": measure.average(own),
        "composed": measure.average(composed),
        "requests": own | composed,
        "refused": [{"case": case, "code": refused.code.name} for case, refused in refusals.items()],
    }


def _draw(cast: Federation, story: Story, console: Console) -> None:
    """Draw who served what for everybody's requests, and show the first request of each."""
    asked = {name: one.held_out[: story.drawn] for name, one in story.contributors.items()}
    answered = {name: _explained(cast, story, [one.input for one in mine]) for name, mine in asked.items()}
    experts = next(iter(answered.values())).experts
    owners = tuple(expert.split("/")[0] for expert in experts)
    panels = [
        Panel(f"requests of\n{name}", [route for each in found.answers for route in each.routes], owners.index(name))
        for name, found in answered.items()
    ]
    firsts = [(name, asked[name][0], found.answers[0]) for name, found in answered.items()]
    console.print(answer_table(firsts, owners))
    save_png(panels, owners, cast.folder / "heat-map.png")
    told = replace(
        next(iter(answered.values())), experts=owners, answers=tuple(answer for _, _, answer in firsts)
    )  # fmt: skip
    save_page(panels, told, cast.folder / "heat-map.html")


def _explain(cast: Federation, story: Story, console: Console) -> int:
    """Answer one question that needs two experts, and tell who answered."""
    pair, question, right, count = measure.composed_question(cast, story)
    answered = _explained(cast, story, [question.input])
    answer = answered.answers[0]
    first = "this is the first of these" if right else "this is the first of all"
    for line in (
        f"\n{right} of {count} requests that need {pair[0]} and {pair[1]} are answered exactly; {first}:",
        f"[bold]greylag-router ask --explain[/] {question.input!r}",
        f"{answer.text}   [dim](expected: {question.targets[0].strip()})[/]",
    ):
        console.print(line, highlight=False)
    terminal.explain(console, answered, answer, modules=False)  # heat-map.png has them
    return answer.release


def _explained(cast: Federation, story: Story, inputs: Sequence[str]) -> Answered:
    return ask(cast.router, inputs, max_new_tokens=story.max_new_tokens, explain=True)
