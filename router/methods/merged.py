"""One average expert: the baseline "Merged Experts" of arXiv 2402.05859, section 4.2.

The outer products B_z A_z are averaged, not A and B on their own; experts that leave a module alone do not count there.
"""

from torch import Tensor

from router.layer.choice import CommonChoice
from router.pool.group_view import ModuleExperts


class Merged:
    """The mean over experts of s B A, for every token alike."""

    def choose(self, module: ModuleExperts, u: Tensor) -> CommonChoice:  # noqa: ARG002 - a Method's signature
        """Choose everybody who touches the module, at equal weight for all of u [..., d]."""
        return CommonChoice(list(module.rows), [1 / len(module)] * len(module))
