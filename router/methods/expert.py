"""One expert for every token and module."""

import torch
from torch import Tensor

from router.gate import Choice
from router.pool import Expert, ModuleExperts


class SingleExpert:
    """One expert, as its contributor trained it.

    Args:
        expert: The expert.
    """

    def __init__(self, expert: Expert) -> None:
        self._expert = expert

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice | None:
        """Choose that expert, [1, 1], for all of u [t, d] wherever it touches the module."""
        if self._expert not in module.experts:
            return None
        position = module.experts.index(self._expert)
        return Choice(torch.tensor([[position]], device=u.device), torch.ones(1, 1, device=u.device))
