"""From a method's name to a method."""

from collections.abc import Callable

from protocol.errors import Code, Refused
from router.layer import Method
from router.methods import METHODS
from router.methods.base import BaseOnly
from router.methods.expert import SingleExpert
from router.methods.merged import Merged
from router.methods.phatgoose import Phatgoose
from router.pool import ExpertPool

# A factory takes the pool, the number of experts a token, and what stands behind the colon.
_METHODS: dict[str, Callable[[ExpertPool, int, str], Method]] = {
    "base": lambda _pool, _k, _argument: BaseOnly(),
    "expert": lambda pool, _k, argument: SingleExpert(pool.find(argument)),
    "merged": lambda _pool, _k, _argument: Merged(),
    "phatgoose": lambda _pool, k, _argument: Phatgoose(k),
}


def resolve(method: str, pool: ExpertPool, k: int) -> Method:
    """Turn a method's name into a method.

    Args:
        method: `phatgoose`, `expert:NAME`, `merged` or `base`.
        pool: The experts of the request.
        k: Experts a token, for methods that choose.

    Raises:
        Refused: `METHOD_UNKNOWN` or `EXPERT_UNKNOWN`.
    """
    name, colon, argument = method.partition(":")
    if name not in _METHODS or (name == "expert") != bool(colon):
        raise Refused(
            Code.METHOD_UNKNOWN, f"There is no routing method {method!r:.200}.", f"Choose one of: {', '.join(METHODS)}."
        )
    return _METHODS[name](pool, k, argument)
