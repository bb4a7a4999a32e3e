"""GenKnowSub: take off what everybody knows, then route by what is left.

Source: "GenKnowSub: Improving Modularity and Reusability of LLMs through General Knowledge Subtraction",
arXiv 2505.10939.

With D_z = s B A and G the general experts, each other expert becomes D_z - mean over G of D_g, and Arrow routes among
these: v_z is the first right singular vector of the difference. The difference is that of the updates; PEFT's
version subtracts the means of A and of B on their own, which is another matrix. Since the weights of a token sum to
1, sum over z of w_z (D_z - mean D_g) = sum over z of w_z D_z - mean D_g: the general experts run once, at weight
-1 / |G| each, and nobody is changed.
"""

import torch
from torch import Tensor

from router.layer.choice import Choice
from router.layer.topk import Decision
from router.methods.arrow import Arrow
from router.methods.shared_decision import SharedDecision
from router.pool.expert import Expert
from router.pool.group_view import ModuleExperts, RouteGroup
from router.pool.prototypes import Direction


class GenKnowSub(SharedDecision):
    """The k experts along whose own main direction a token points, less what the general ones, not counted, do."""

    def __init__(self, generals: tuple[Expert, ...], k: int, temperature: float) -> None:
        super().__init__()
        self._digests = tuple(expert.digest for expert in generals)
        self._arrow = Arrow(k, temperature, Direction(generals))
        self._others: dict[RouteGroup, RouteGroup] = {}
        self._common: dict[RouteGroup, list[Tensor]] = {}
        """Rows of the general experts, by slot."""

    def decide(self, group: RouteGroup, u: Tensor) -> Decision:
        """Choose by direction among the others for every token of u [..., d], and take the general experts off."""
        if group not in self._others:
            self._others[group] = group.without(self._digests)
            self._common[group] = [self._rows(ModuleExperts(group, slot), u) for slot in range(len(group.counts))]
        chosen = self._arrow.decide(self._others[group], u)
        return [self._less(common, choice) for common, choice in zip(self._common[group], chosen, strict=True)]

    def _rows(self, module: ModuleExperts, u: Tensor) -> Tensor:
        """Find the general experts, [n], that touch a module with inputs u [..., d]."""
        rows = [row for row in map(module.by_digest.get, self._digests) if row is not None]
        return torch.tensor(rows, dtype=torch.int64, device=u.device)

    def _less(self, rows: Tensor, choice: object) -> Choice | None:
        if not isinstance(choice, Choice):
            return None
        common = rows.expand(len(choice.experts), len(rows))
        weights = choice.weights.new_full(common.shape, -1 / len(self._digests))
        return Choice(torch.cat([choice.experts, common], dim=1), torch.cat([choice.weights, weights], dim=1))
