"""What a routing method may look at when it plans a request."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.base import Base
from router.pool import ExpertPool


@dataclass(frozen=True, eq=False)
class Asked:
    """A few inputs that are to be routed by one choice."""

    pool: ExpertPool
    """The experts that may answer."""
    inputs: Sequence[str] = ()
    """Texts; none where a method is only tried out."""
    k: int = 2
    """Experts a token, for methods that choose."""
    temperature: float = 1.0
    """Divides a method's scores before its softmax."""
    argument: str = ""
    """What stands behind the colon of the method's name."""
    base: Base | None = None
    """The base model, for methods that read the inputs first."""

    def with_argument(self, argument: str) -> "Asked":
        """Return the same with what stands behind the colon."""
        return replace(self, argument=argument)
