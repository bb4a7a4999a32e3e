"""Which methods are compared, read and checked before any model wakes. Needs no torch."""

from collections.abc import Sequence

from protocol.errors import Code, Refused
from router.methods import METHODS, find_method

ORACLE = "oracle"
BEST_INDIVIDUAL = "best-individual"
CHOSEN = {
    ORACLE: "Of each task the expert that does best alone; runs every expert.",
    BEST_INDIVIDUAL: "The one expert that does best alone in the mean over tasks; runs every expert.",
}
"""What is no routing method, since it looks at the right answers, by name."""


def read_methods(given: Sequence[str]) -> list[str]:
    """Read names of methods, each argument one or several with commas between.

    `genknowsub:a,b` has commas of its own: what names no method goes on with a list that the one before it takes.

    Raises:
        Refused: `METHOD_UNKNOWN`, or `REQUEST_INVALID` if there is none or one stands twice.
    """
    known = {name.partition(":")[0] for name in METHODS}
    found: list[str] = []
    for name in (piece.strip() for text in given for piece in text.split(",")):
        takes_more = found and found[-1] not in CHOSEN and find_method(found[-1]).endswith("...")
        if takes_more and name.partition(":")[0] not in known | CHOSEN.keys():
            found[-1] += f",{name}"
            continue
        if name not in CHOSEN:
            find_method(name)
        found.append(name)
    if not found or len(set(found)) < len(found):
        names = ", ".join((*METHODS, *CHOSEN))
        raise Refused(Code.REQUEST_INVALID, "Each method is named once, and one at least.", f"Name some of: {names}.")
    return found
