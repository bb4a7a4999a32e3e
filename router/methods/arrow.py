"""Arrow: an expert is known by the direction that its update stretches most.

Source: O. Ostapenko and others, "Towards Modular LLMs by Building and Reusing a Library of LoRAs",
arXiv 2405.11157, section 4.2; a baseline of arXiv 2402.05859, section 4.2.

Score: |v_z . u|, with u as it enters the module and v_z the first right singular vector of s B A, exact in float64;
weights softmax(score / T) over the k best, T = 1 as in its authors' code and in PEFT. The code of arXiv 2402.05859
divides by 10 sqrt(d) instead, which makes the k weights nearly equal: ask for that temperature to have it.
"""

from torch import Tensor

from router.layer.topk import Decision, choose_by_scores, in_pieces, products
from router.methods.shared_decision import SharedDecision
from router.pool.group_view import ModuleExperts, RouteGroup
from router.pool.prototypes import Direction


class Arrow(SharedDecision):
    """The k experts whose main direction, as the prototypes give it, a token points along, either way."""

    def __init__(self, k: int, temperature: float, prototypes: Direction = Direction()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self._k, self._temperature, self._prototypes = k, temperature, prototypes

    def decide(self, group: RouteGroup, u: Tensor) -> Decision:
        """Score every direction against every token of u [..., d] and keep the best k."""
        seen = group.by(self._prototypes)

        def decide(tokens: Tensor, _start: int) -> Decision:
            slots = len(seen.counts)
            table = products(seen, tokens)[:, slots:].abs_().view(len(tokens), seen.length, slots)
            modules = [ModuleExperts(seen, slot) for slot in range(slots)]
            return [
                choose_by_scores(module, table[:, :, module.slot], self._k, self._temperature) if len(module) else None
                for module in modules
            ]

        return in_pieces(u, seen.length * len(seen.counts), decide)
