"""What a routing method may look at when it plans a request."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from protocol.errors import Code, Refused
from router.embedding import Embedder
from router.pool import ExpertPool

_NAMED = 5


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
    embedder: Embedder | None = None
    """Turns the inputs into vectors, for methods that read them first."""

    def with_argument(self, argument: str) -> "Asked":
        """Return the same with what stands behind the colon."""
        return replace(self, argument=argument)

    def only_factors(self) -> "Asked":
        """Return the same, for a method that looks at the update s B A itself.

        Raises:
            Refused: `KIND_UNSUPPORTED` if an expert does more than that.
        """
        others = [expert.full_name for expert in self.pool.experts if not expert.plain]
        if others:
            raise Refused(
                Code.KIND_UNSUPPORTED,
                f"The method scores updates s B A; {len(others)} experts are of another kind: {shortened(others)}.",
                "Deny them, or choose another method.",
            )
        return self


def shortened(names: Sequence[str]) -> str:
    """List a few of many names."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
