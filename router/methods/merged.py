"""One average expert, in two ways of counting.

merged    the baseline "Merged Experts" of arXiv 2402.05859, section 4.2: the outer products B_z A_z are averaged, not A
          and B on their own; experts that leave a module alone do not count there
uniform   each has the same share of the whole pool everywhere; what an absent one would have had goes to nobody
"""

from torch import Tensor

from router.layer.choice import CommonChoice
from router.pool.group_view import ModuleExperts


class Merged:
    """The mean over experts of s B A, for every token alike.

    Args:
        experts: Whose number weights are shares of; without it, those who touch the module.
    """

    def __init__(self, experts: int | None = None) -> None:
        self._experts = experts

    def choose(self, module: ModuleExperts, u: Tensor) -> CommonChoice:  # noqa: ARG002 - a Method's signature
        """Choose everybody who touches the module, at equal weight for all of u [..., d]."""
        return CommonChoice(list(module.rows), [1 / (self._experts or len(module))] * len(module))
