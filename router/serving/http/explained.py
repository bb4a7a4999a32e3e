"""Why this answer: the `greylag` of each answer of a reply."""

from typing import Any, Literal

from router.query.answer import Answer, Answered
from router.query.attribution import best_experts, distribution, token_weights

_SHOWN = 3
"""Experts of a token that are named."""


def explained(answered: Answered, *, explain: bool | Literal["shares"]) -> dict[str, Any]:
    """Say which release and method answered, and, where it was asked for, which experts.

    Args:
        answered: One answer.
        explain: Whether to name experts with their shares of all routing, or for each token, too.
    """
    (answer,) = answered.answers
    document: dict[str, Any] = {"release": answer.release, "method": answer.method}
    if not explain:
        return document
    count = len(answered.experts)
    shares = distribution(answer.routes, count)
    document["experts"] = _named(answered, best_experts(shares, count))
    if explain is True:
        document["tokens"] = _tokens(answered, answer)
    return document


def _tokens(answered: Answered, answer: Answer) -> list[dict[str, Any]]:
    """List the tokens that somebody read, with their experts' mean weights over the modules that did."""
    inputs, found = len(answer.input_tokens), []
    for position, token in enumerate((*answer.input_tokens, *answer.output_tokens)):
        weights = token_weights(answer.routes, position, inputs, len(answered.experts))
        if weights is not None:
            of = "input" if position < inputs else "output"
            found.append({"token": token, "of": of, "experts": _named(answered, best_experts(weights, _SHOWN))})
    return found


def _named(answered: Answered, best: list[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"name": answered.experts[at], "share": round(share, 6)} for at, share in best]
