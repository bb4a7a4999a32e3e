"""PHATGOOSE: post-hoc adaptive tokenwise gating over an ocean of specialised experts.

Source: M. Muqeeth, H. Liu, Y. Liu, C. Raffel, "Learning to Route Among Specialized Experts for
Zero-Shot Generalization", arXiv 2402.05859, section 3.
"""

from torch import Tensor

from router.gate import Choice, choose, scores
from router.pool import ModuleExperts


class Phatgoose:
    """The k experts whose gates agree most with a token.

    Args:
        k: Experts a token; the paper uses 2.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice:
        """Score every gate against every token of u [t, d] and keep the best, [t, min(k, n)]."""
        return choose(scores(u, module.gates), self._k, u.shape[-1])
