"""PHATGOOSE: post-hoc adaptive tokenwise gating over an ocean of specialised experts.

Source: M. Muqeeth, H. Liu, Y. Liu, C. Raffel, "Learning to Route Among Specialized Experts for
Zero-Shot Generalization", arXiv 2402.05859, section 3.

Score: vbar_z . ubar, both standardised over features; weights softmax(score / (T sqrt(d))) over the k best.
"""

from torch import Tensor

from router.layer.topk import Decision, choose_topk
from router.methods.shared_decision import SharedDecision
from router.pool.group_view import RouteGroup


class Phatgoose(SharedDecision):
    """The k experts whose gates agree most with a token.

    Args:
        k: Experts a token; the paper uses 2.
        temperature: T; the paper has none, which is 1.
    """

    def __init__(self, k: int, temperature: float = 1.0) -> None:
        super().__init__()
        self._k, self._temperature = k, temperature

    def decide(self, group: RouteGroup, u: Tensor) -> Decision:
        """Score every gate against every token of u [..., d] and keep the best k."""
        return choose_topk(group, u, self._k, self._temperature)
