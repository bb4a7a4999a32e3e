"""Figures of who answered: shares, distributions, and how far they are from an oracle's.

Source: arXiv 2402.05859, section 4.4. A routing distribution is the mean of the routing probabilities over
all tokens and modules; an oracle that always takes one expert has the distribution that is 1 there.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.errors import Code, Refused
from router.query.answer import Answered, ModuleRoute
from router.query.request import TaskInput


@dataclass(frozen=True, eq=False)
class Panel:
    """One group of requests, looked at together; in the paper a data set."""

    title: str
    routes: Sequence[ModuleRoute]
    oracle: int | None = None
    """Position of the expert that was trained for these requests, where there is one."""
    score: float | None = None
    """How well the model did on them, on any scale that all panels share."""


def panels_by_task(tasks: Sequence[TaskInput], answered: Answered) -> list[Panel]:
    """Put the answers of each task together, which are in the order of what was asked.

    Raises:
        Refused: `EXPERT_UNKNOWN` for an oracle that is not in the release.
    """
    panels = []
    for title in dict.fromkeys(each.task for each in tasks):
        mine = [at for at, each in enumerate(tasks) if each.task == title]
        oracles = {oracle for at in mine if (oracle := tasks[at].oracle) is not None}
        if len(oracles) > 1:
            raise Refused(Code.REQUEST_INVALID, f"Task {title!r:.100} has several oracles.", "Name one a task.")
        scores = [score for at in mine if (score := tasks[at].score) is not None]
        panels.append(
            Panel(
                title,
                [route for at in mine for route in answered.answers[at].routes],
                position(oracles.pop(), answered.experts) if oracles else None,
                sum(scores) / len(scores) if scores else None,
            )
        )
    return panels


def position(name: str, experts: Sequence[str]) -> int:
    """Look an expert up by `name` or `contributor/name`.

    Raises:
        Refused: `EXPERT_UNKNOWN`, also if several contributors have an expert of that name.
    """
    found = [at for at, full in enumerate(experts) if name in (full, full.partition("/")[2])]
    if len(found) != 1:
        what = f"{len(found)} experts are called {name!r:.200}."
        raise Refused(Code.EXPERT_UNKNOWN, what, f"Name one of: {', '.join(experts)}.")
    return found[0]


def expert_shares(routes: Iterable[ModuleRoute], experts: Sequence[str]) -> dict[str, float]:
    """Share of all routing weight that each expert was given.

    Returns:
        Shares by expert, largest first; they sum to 1 unless nothing was routed.
    """
    shares = distribution(routes, len(experts))
    return dict(sorted(zip(experts, shares.tolist(), strict=True), key=lambda item: -item[1]))


def module_shares(routes: Iterable[ModuleRoute], experts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Share of each module's routing weight that each expert was given.

    Returns:
        [n] by module path, in the order in which modules first ran. What a method takes off, at a weight below zero,
        is nobody's share.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    for route in routes:
        total = sums.setdefault(route.module, np.zeros(len(experts)))
        total += _given(route, len(experts))
    return {module: values / (values.sum() or 1.0) for module, values in sums.items()}


def mean_weights(routes: Iterable[ModuleRoute], experts: int) -> dict[str, NDArray[np.float64]]:
    """Average the weights of each of n experts at each module over its tokens, whatever they sum to: [n] by path."""
    sums: dict[str, NDArray[np.float64]] = {}
    tokens: Counter[str] = Counter()
    for route in routes:
        np.add.at(sums.setdefault(route.module, np.zeros(experts)), route.experts, route.weights)
        tokens[route.module] += len(route.experts)
    return {module: values / max(tokens[module], 1) for module, values in sums.items()}


def distribution(routes: Iterable[ModuleRoute], experts: int) -> NDArray[np.float64]:
    """Average the routing probabilities of all tokens over all modules.

    Routes with the whole distribution (`--full`) give that of every one of n experts; others that of the chosen ones.

    Returns:
        [n], which sums to 1 unless nothing was routed.
    """
    total = sum((_given(route, experts) for route in routes), np.zeros(experts))
    return total / (total.sum() or 1.0)


def _given(route: ModuleRoute, experts: int) -> NDArray[np.float64]:
    given = np.zeros(experts)
    if route.full is None:
        np.add.at(given, route.experts, np.maximum(route.weights, 0))
    else:
        given += np.maximum(route.full, 0).sum(axis=0, dtype=np.float64)
    return given


def oracle_divergence(panel: Panel, experts: int) -> float | None:
    """Return KL(oracle || routing) of a panel in nats, which is -log of what the oracle's expert was given.

    Taken in this direction since the oracle excludes all experts but one: the other way round it is infinite.
    None without an oracle.
    """
    if panel.oracle is None:
        return None
    given = min(float(distribution(panel.routes, experts)[panel.oracle]), 1.0)
    return -math.log(given) if given > 0 else math.inf


def correlation(panels: Sequence[Panel], experts: int) -> float | None:
    """Pearson's correlation over panels between the divergence from the oracle and the score.

    The paper found -0.2: routing that does well is not routing that copies the oracle's.

    Returns:
        In [-1, 1]; None with fewer than two panels that have both figures, where one does not vary, or where an
        oracle was given nothing, so that a divergence is infinite.
    """
    known = [(oracle_divergence(panel, experts), panel.score) for panel in panels]
    pairs = [(x, y) for x, y in known if x is not None and y is not None]
    if not all(math.isfinite(x) for x, _ in pairs):
        return None
    try:
        return statistics.correlation([x for x, _ in pairs], [y for _, y in pairs])
    except statistics.StatisticsError:
        return None


def token_weights(
    routes: Sequence[ModuleRoute], position: int, inputs: int, experts: int
) -> NDArray[np.float64] | None:
    """Average what one token was given over the modules that read it.

    Args:
        routes: Of one answer.
        position: Of the token, input tokens first, then those of the output.
        inputs: Number of input tokens.
        experts: Experts in the pool, n.

    Returns:
        [n], or None for a token that nobody read, as the last one that was written.
    """
    sums, modules = np.zeros(experts), 0
    for route in routes:
        # A decoder-only model's modules read input and output in one row. A decoder's first row read its start token.
        row = position if route.reads_input else position - inputs + 1
        if (not route.reads_input and position < inputs) or row >= len(route.experts):
            continue
        if route.full is None:
            np.add.at(sums, route.experts[row], route.weights[row])
        else:
            sums += route.full[row]
        modules += 1
    return sums / modules if modules else None


def best_experts(weights: NDArray[np.float64], most: int) -> list[tuple[int, float]]:
    """List positions and weights of the experts that were given most, none that was given nothing; largest first."""
    order = np.argsort(-weights, kind="stable")[:most]
    return [(int(at), float(weights[at])) for at in order if weights[at] > 0]


def panels_document(panels: Sequence[Panel], experts: Sequence[str]) -> dict[str, object]:
    """Build what `trace --json` says of the panels and of all of them together."""
    return {
        "panels": [
            {
                "title": panel.title,
                "oracle": None if panel.oracle is None else experts[panel.oracle],
                "score": panel.score,
                "kl_from_oracle": _finite(oracle_divergence(panel, len(experts))),
                "shares": expert_shares(panel.routes, experts),
            }
            for panel in panels
        ],
        "correlation_of_kl_and_score": correlation(panels, len(experts)),
    }


def _finite(value: float | None) -> float | None:
    # JSON has no infinity.
    return value if value is not None and math.isfinite(value) else None
