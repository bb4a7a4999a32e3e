"""What a routing method may look at when it plans a request."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protocol.errors import Code, Refused
from router.base.batching import PromptLike
from router.methods.features.embedder import Embedder
from router.methods.features.mixture import Mixtures, Shares
from router.pool.calibration import REQUEST
from router.pool.expert import Expert
from router.pool.pool import ExpertPool

_NAMED = 5


@dataclass(frozen=True)
class Features:
    """What methods look at inputs with before anything is routed: the base, or another encoder."""

    embedder: Embedder
    """Turns inputs into vectors."""
    mixtures: Mixtures
    """Solves inputs as mixtures of experts."""


@dataclass(frozen=True, eq=False)
class MethodContext:
    """A few inputs that are to be routed by one choice."""

    pool: ExpertPool
    """The experts that may answer."""
    inputs: Sequence[PromptLike] = ()
    """Those to route; none where a method is only tried out."""
    k: int = 2
    """Experts a token, for methods that choose."""
    temperature: float = 1.0
    """Divides a method's scores before its softmax."""
    argument: str = ""
    """What stands behind the colon of the method's name."""
    features: Features | None = None
    """For methods that read the inputs first."""

    def only_factors(self) -> ExpertPool:
        """Return the experts to a method that looks at the update s B A itself.

        Raises:
            Refused: `KIND_UNSUPPORTED` if an expert does more than that.
        """
        self.refuse_any(
            [expert for expert in self.pool.experts if not expert.plain],
            Code.KIND_UNSUPPORTED,
            "The method scores updates s B A; {n} experts are of another kind",
            "Deny them, or choose another method.",
        )
        return self.pool

    @property
    def seen(self) -> Features:
        """What the inputs are read with.

        Raises:
            ValueError: There is nothing.
        """
        if self.features is None:
            raise ValueError("the method reads inputs, and there is nothing to read them with")
        return self.features

    def shares(self) -> Shares:
        """Solve the inputs as mixtures of the experts, of which there is one at least.

        Raises:
            Refused: `STATISTICS_MISSING`, naming the experts that tell no means.
        """
        self.check_means("A mixture", whole=False)
        return self._capped(self.seen.mixtures.shares(self.pool, self.inputs))

    def latest_shares(self) -> Shares:
        """Solve the inputs as `shares`, or what they end in where that is familiar.

        Raises:
            Refused: As `shares`.
        """
        self.check_means("A mixture", whole=False)
        return self._capped(self.seen.mixtures.latest(self.pool, self.inputs))

    def _capped(self, found: Shares) -> Shares:
        calibration = self.pool.calibration
        if calibration is None or REQUEST not in calibration.modules:
            return found
        # A release's cap: whoever would take too many requests is given less of each.
        bias = calibration.over([expert.digest for expert in self.pool.experts], [REQUEST]).bias[0]
        return Shares(found.shares * np.exp(bias.astype(np.float64)), found.alike)

    def check_means(self, method: str, *, whole: bool) -> None:
        """Refuse to route by a method among experts of which one tells no means, or, if whole, none of some module.

        Raises:
            Refused: `STATISTICS_MISSING`, naming them.
        """
        self.refuse_any(
            [each for each in self.pool.experts if len(each.means) < (len(each.modules) if whole else 1)],
            Code.STATISTICS_MISSING,
            f"{method} needs the means of every expert{' at every module' if whole else ''}; {{n}} tell none",
            "Deny these, or choose another method; contributors share means with: greylag-client train --share "
            f"{'all-means' if whole else 'means'}",
        )

    @staticmethod
    def refuse_any(experts: Sequence[Expert], code: Code, reason: str, hint: str) -> None:
        """Refuse a request for the sake of some experts, where there are any.

        In the reason `{n}` stands for their number; a few of their names follow.

        Raises:
            Refused: The code.
        """
        if experts:
            names = ", ".join(expert.full_name for expert in experts[:_NAMED])
            more = f" and {len(experts) - _NAMED} more" if len(experts) > _NAMED else ""
            raise Refused(code, f"{reason.replace('{n}', str(len(experts)), 1)}: {names}{more}.", hint)
