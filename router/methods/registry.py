"""From a method's name to the plan of a request."""

from collections.abc import Callable, Sequence

from protocol.errors import Code, Refused
from router.layer import Plan
from router.methods import METHODS
from router.methods.asked import Asked
from router.methods.base import BaseOnly
from router.methods.expert import SingleExpert
from router.methods.merged import Merged
from router.methods.phatgoose import Phatgoose

Maker = Callable[[Asked], Plan | Sequence[Plan]]

# A maker gives one plan for all inputs alike, or one for each of them.
_MAKERS: dict[str, Maker] = {
    "base": lambda asked: Plan(asked.pool, BaseOnly()),
    "expert:NAME": lambda asked: Plan(asked.pool, SingleExpert(asked.pool.find(asked.argument))),
    "merged": lambda asked: Plan(asked.pool, Merged()),
    "phatgoose": lambda asked: Plan(asked.pool, Phatgoose(asked.k, asked.temperature)),
}
_BY_NAME = {listed.partition(":")[0]: listed for listed in METHODS}


def resolve(method: str, asked: Asked) -> list[Plan]:
    """Turn a method's name into plans.

    Args:
        method: As `METHODS` lists them, with what stands for an argument put in.
        asked: What the method may look at.

    Returns:
        One plan for each input; inputs that are routed alike share one.

    Raises:
        Refused: `METHOD_UNKNOWN`, or what the method refuses.
    """
    name, colon, argument = method.partition(":")
    listed = _BY_NAME.get(name)
    if listed is None or (":" in listed) != bool(colon):
        raise Refused(
            Code.METHOD_UNKNOWN, f"There is no routing method {method!r:.200}.", f"Choose one of: {', '.join(METHODS)}."
        )
    made = _MAKERS[listed](asked.with_argument(argument))
    return [made] * len(asked.inputs) if isinstance(made, Plan) else list(made)
