"""A caller's routing choice at any door: whether it is open to callers."""

from protocol.errors import Code, Refused
from router.methods import find_method
from router.model.releases import Held
from router.query.limits import Allowance
from router.query.request import RoutingChoice


def check_allowed(held: Held, choice: RoutingChoice, allowance: Allowance) -> None:
    """Refuse what the router's operator keeps to himself.

    Raises:
        Refused: `REQUEST_INVALID`, `METHOD_CLOSED`, `METHOD_UNKNOWN`, or as `Held.find`.
    """
    most = allowance.k
    if choice.k is not None and choice.k > most:
        raise Refused(Code.REQUEST_INVALID, f"k is {choice.k}; at most {most} are taken.", "Ask for fewer experts.")
    own = held.find(choice.release).settings.method
    if choice.method is None or choice.method == own:
        return
    find_method(choice.method)
    if choice.method.partition(":")[0] not in allowance.methods:
        raise Refused(
            Code.METHOD_CLOSED,
            f"The router takes no requests by {choice.method:.100}; it takes {', '.join(allowance.methods)}.",
            "Ask for one of them, or ask its operator to open more with `methods` in router.toml.",
        )
