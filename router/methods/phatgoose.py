"""PHATGOOSE: post-hoc adaptive tokenwise gating over an ocean of specialised experts.

Source: M. Muqeeth, H. Liu, Y. Liu, C. Raffel, "Learning to Route Among Specialized Experts for
Zero-Shot Generalization", arXiv 2402.05859, section 3.
"""

from torch import Tensor

from router.gate import Choice, CommonChoice
from router.group import ModuleExperts, RouteGroup
from router.select import select


class Phatgoose:
    """The k experts whose gates agree most with a token.

    One object serves one request: it remembers what its modules were given last.

    Args:
        k: Experts a token; the paper uses 2.
        temperature: Divides the scores, which the paper leaves as they are.
    """

    def __init__(self, k: int, temperature: float = 1.0) -> None:
        self._k, self._temperature = k, temperature
        self._group: RouteGroup | None = None
        self._u: Tensor | None = None
        self._waiting: dict[int, Choice | CommonChoice | None] = {}

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice | CommonChoice | None:
        """Score every gate against every token of u [..., d] and keep the best k.

        The first of several modules that are given one tensor decides for its siblings, too.
        """
        group, slot = module.group, module.slot
        if len(group.counts) == 1:
            return select(group, u, self._k, self._temperature)[0]
        if u is not self._u or group is not self._group or slot not in self._waiting:
            self._group, self._u = group, u
            self._waiting = {
                at: choice
                for at, choice in enumerate(select(group, u, self._k, self._temperature))
                if choice is not None
            }
        # Each decision is used once, so that a tensor that is written over between two calls is read again.
        choice = self._waiting.pop(slot)
        if not self._waiting:
            self._u = None
        return choice
