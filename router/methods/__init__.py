"""Routing methods: a small file for each kind, a line here and an entry in the registry; imports `layer` and below."""

from collections.abc import Sequence

from protocol.errors import Code, Refused
from protocol.spec import Architecture

METHODS = {
    "phatgoose": "The gates choose the top-k experts for every token at every module (arXiv 2402.05859).",
    "average-activation": "As phatgoose, with mean inputs for gates; experts must tell them (arXiv 2402.05859).",
    "nnls-request": "A request is solved for the experts it is a mixture of; experts must tell means.",
    "nnls-cautious": "As nnls-request, for what the request ends in; nobody is weighted beyond an own share of it.",
    "nnls-fixed:MASS": "As nnls-request, with a total weight that is given.",
    "nnls-token": "As nnls-request, and every token at every module chooses, too, by the experts' means.",
    "nnls-gates": "As nnls-token, with tokens choosing by the gates.",
    "arrow": "As phatgoose, but by the direction that an expert's update stretches most (arXiv 2405.11157).",
    "spectr": "The k experts whose updates answer a token with the largest norm (arXiv 2504.03454).",
    "lag": "Arrow filters 20 experts a token, SpectR takes the best one (arXiv 2507.05346).",
    "genknowsub:NAME,...": "Arrow on what experts know beyond the named general ones (arXiv 2505.10939).",
    "retrieval": "The one expert whose training inputs lie nearest to the query; experts must tell where.",
    "expert:NAME": "One expert for everything, by its name or as contributor/name.",
    "merged": "The mean of all experts' outer products B A (arXiv 2402.05859, section 4.2).",
    "parameter-average": "One expert made of the mean A and the mean B; smaller ranks are padded with zeros.",
    "uniform": "Every expert at weight 1 / n; an expert's share is lost where it leaves a module alone.",
    "base": "The base model alone.",
}
"""One line for each method, as people write it."""
NEEDS = {
    "average-activation": "means",
    "nnls-request": "means",
    "nnls-cautious": "means",
    "nnls-token": "means",
    "nnls-gates": "means",
    "retrieval": "centroid",
}
"""What every expert must tell of its data, by method; those with an argument are no pool's method."""
BY_MIXTURE = ("nnls-request", "nnls-cautious", "nnls-fixed:MASS", "nnls-token", "nnls-gates")
"""Methods that solve a request for the experts it is a mixture of."""
READ_FIRST = (*BY_MIXTURE, "retrieval")
"""Methods that read a request before they plan it, so that their plan is of that request alone."""
BY_ENDING = ("nnls-cautious",)
"""Those of them that solve what it ends in, where that is familiar."""
OWN_VECTORS = ("average-activation", "arrow", "genknowsub:NAME,...", "lag", "nnls-token", "nnls-gates")
"""Methods that compare tokens with vectors of their own in place of gates."""
BY_MEANS: dict[Architecture, str] = {"encoder-decoder": "nnls-request", "decoder-only": "nnls-cautious"}
"""How a pool routes that asks for means, unless its founder chooses (docs/decisions/0013-mixtures.md)."""


def find_allowed(names: Sequence[str]) -> None:
    """Check methods that an operator opens to callers, named without their arguments (`METHOD_UNKNOWN`)."""
    known = [entry.partition(":")[0] for entry in METHODS]
    if unknown := [name for name in names if name not in known]:
        raise Refused(
            Code.METHOD_UNKNOWN, f"There is no routing method {unknown[0]!r:.200}.", f"Choose of: {', '.join(known)}."
        )


def find_method(method: str) -> str:
    """Find a method in the list, `expert:ada` under `expert:NAME`.

    Raises:
        Refused: `METHOD_UNKNOWN`.
    """
    name, colon, _ = method.partition(":")
    found = next((entry for entry in METHODS if entry.partition(":")[0] == name), None)
    if found is None or (":" in found) != bool(colon):
        raise Refused(
            Code.METHOD_UNKNOWN, f"There is no routing method {method!r:.200}.", f"Choose one of: {', '.join(METHODS)}."
        )
    return found
