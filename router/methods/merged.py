"""One average expert.

The baseline "Merged Experts" of arXiv 2402.05859, section 4.2: the outer products B_z A_z are
averaged, not A and B on their own. Experts that leave a module alone do not count there.
"""

import torch
from torch import Tensor

from router.gate import Choice
from router.pool import ModuleExperts


class Merged:
    """The mean over experts of s B A, for every token alike."""

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice:
        """Choose everybody, [1, n], at equal weight for all of u [t, d]."""
        count = len(module.experts)
        everybody = torch.arange(count, device=u.device).unsqueeze(0)
        return Choice(everybody, torch.full((1, count), 1 / count, device=u.device))
