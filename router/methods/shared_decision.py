"""One decision for all modules that are given the same tensor."""

from abc import ABC, abstractmethod

from torch import Tensor

from router.layer.choice import Choice, CommonChoice
from router.layer.topk import Decision
from router.pool.group_view import ModuleExperts, RouteGroup


class SharedDecision(ABC):
    """A method that scores the experts of a whole group of modules at once.

    One object serves one request: it remembers what its modules were given last.
    """

    def __init__(self) -> None:
        self._group: RouteGroup | None = None
        self._u: Tensor | None = None
        self._waiting: dict[int, Choice | CommonChoice | None] = {}

    @abstractmethod
    def decide(self, group: RouteGroup, u: Tensor) -> Decision:
        """Choose experts for u [..., d] at every module of a group; None where nobody is taken."""

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice | CommonChoice | None:
        """Choose experts for u [..., d].

        The first of several modules that are given one tensor decides for its siblings, too.
        """
        group, slot = module.group, module.slot
        if len(group.counts) == 1:
            return self.decide(group, u)[0]
        if u is not self._u or group is not self._group or slot not in self._waiting:
            self._group, self._u = group, u
            # The layer asks wherever anybody is, also where the method takes nobody.
            self._waiting = {at: choice for at, choice in enumerate(self.decide(group, u)) if group.counts[at]}
        # Each decision is used once, so that a tensor that is written over between two calls is read again.
        choice = self._waiting.pop(slot)
        if not self._waiting:
            self._u = None
        return choice
