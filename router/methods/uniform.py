"""Every expert alike.

Differs from `router.methods.merged` where experts leave modules alone: each has the same share of the whole pool
everywhere, and what an absent one would have had goes to nobody.
"""

from torch import Tensor

from router.layer.choice import CommonChoice
from router.pool.module_view import ModuleExperts


class Uniform:
    """Every expert of the pool at weight 1 / n.

    Args:
        experts: n.
    """

    def __init__(self, experts: int) -> None:
        self._weight = 1 / max(experts, 1)

    def choose(self, module: ModuleExperts, u: Tensor) -> CommonChoice:  # noqa: ARG002 - a Method's signature
        """Choose everybody who touches the module, for all of u [..., d]."""
        return CommonChoice(list(module.rows), [self._weight] * len(module))
