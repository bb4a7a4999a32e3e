"""Answers as JSON, and as the tables behind `--explain`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol.printable import printable
from router.query.answer import Answer, Answered
from router.query.attribution import best_experts, expert_shares, module_shares, token_weights

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")
_LISTED = 8
"""Experts of an answer that are named."""
_SHOWN = 3
"""Experts of a token or a module that are named."""


def as_json(answered: Answered, *, explain: bool) -> dict[str, Any]:
    """Build the document of `ask --json`."""
    return {"answers": [_answer_json(answer, answered.experts, explain=explain) for answer in answered.answers]}


def explain(console: Console, answered: Answered, answer: Answer, *, modules: bool = True) -> None:
    """Print who gave one answer of a batch: shares of all routing, then token by token, then module by module.

    Args:
        console: Where to.
        answered: The batch.
        answer: One of its answers.
        modules: Whether to go on to the modules, of which a base may have hundreds.
    """
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(answered.experts)}
    title = Text(f"Who answered (release {answer.release}, {printable(answer.method)})")  # Text: names are not markup
    table = Table("expert", "share", "", title=title)
    for name, share in expert_shares(answer.routes, answered.experts).items():
        bar = Text("█" * round(share * 40), colours[name])
        table.add_row(Text(printable(name), colours[name]), f"{share:.0%}", bar)
    console.print(table)
    console.print(_token_table(answer, answered.experts, colours))
    if modules:
        console.print(_module_table(answer, answered.experts, colours))


def _answer_json(answer: Answer, experts: Sequence[str], *, explain: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"text": answer.text, "release": answer.release, "method": answer.method}
    if explain:
        document |= {
            "experts": list(experts),
            "shares": expert_shares(answer.routes, experts),
            "input_tokens": list(answer.input_tokens),
            "output_tokens": list(answer.output_tokens),
            "routes": [
                {
                    "module": route.module,
                    "reads_input": route.reads_input,
                    "experts": route.experts.tolist(),
                    "weights": _rounded(route.weights),
                }
                | ({} if route.full is None else {"full": _rounded(route.full)})
                for route in answer.routes
            ],
        }
    return document


def _rounded(weights: NDArray[np.float32]) -> object:
    return weights.astype(float).round(6).tolist()


def _token_table(answer: Answer, experts: Sequence[str], colours: dict[str, str]) -> Table:
    """For each token the experts with the largest mean weight over the modules that saw it."""
    table = Table("token", "of the", "experts (mean weight over modules)", title="Token by token")
    inputs = len(answer.input_tokens)
    for position, token in enumerate((*answer.input_tokens, *answer.output_tokens)):
        weights = token_weights(answer.routes, position, inputs, len(experts))
        if weights is not None:
            part = "input" if position < inputs else "output"
            table.add_row(Text(printable(token)), part, _ranking(weights, experts, colours))
    return table


def _module_table(answer: Answer, experts: Sequence[str], colours: dict[str, str]) -> Table:
    table = Table("module", "experts (mean weight over tokens)", title="Module by module")
    for module, shares in module_shares(answer.routes, experts).items():
        table.add_row(Text(printable(module)), _ranking(shares, experts, colours))
    return table


def _ranking(shares: NDArray[np.float64], experts: Sequence[str], colours: dict[str, str]) -> Text:
    best = best_experts(shares, _SHOWN)
    return Text().join(Text(f"{printable(experts[at])} {share:.0%}  ", colours[experts[at]]) for at, share in best)


def explain_talk(
    pieces: Sequence[tuple[str, int]],
    shares: Sequence[tuple[str, float]],
    tokens: Sequence[Sequence[tuple[str, float]]],
) -> None:
    """Print who gave an answer of a chat, and the answer once more, each token coloured by who gave most of it.

    Args:
        pieces: The answer's texts, each with the number of its token.
        shares: Experts with their shares of all routing, largest first.
        tokens: Experts of each token, most first; empty where nobody asked for them, and nothing is coloured then.
    """
    console = Console(stderr=True, highlight=False)
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, (name, _) in enumerate(shares)}
    if tokens:
        best = [each[0][0] if each else "" for each in tokens]
        whole = Text()
        for text, at in pieces:
            whole.append(printable(text), colours.get(best[at], "") if at < len(best) else "")
        console.print(whole)
    named = (Text(f"{printable(name)} {share:.0%}", colours[name]) for name, share in shares[:_LISTED])
    console.print(Text("  ").join(named) if shares else Text("No expert answered: the base alone did."))
