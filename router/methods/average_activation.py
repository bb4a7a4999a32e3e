"""Average Activation: the mean input of an expert's training data in its gate's place.

Source: a baseline of arXiv 2402.05859, section 4.2. Score and weights are PHATGOOSE's.

Means are teacher-forced (`router.training.mean_inputs`): a decoder's module saw every target token. The code of the
paper computed them while the model generated, and kept the last step alone, so its published figures are of a weaker
form.
"""

from torch import Tensor

from router.layer.topk import Decision
from router.methods.phatgoose import Phatgoose
from router.pool.expert import Expert
from router.pool.gate import standardise
from router.pool.group_view import RouteGroup


def mean(expert: Expert, path: str) -> Tensor | None:
    """Return an expert's mean input [d] at a module, standardised; None if its contributor does not tell."""
    found = expert.means.get(path)
    return None if found is None else standardise(found.double()).float()


class AverageActivation(Phatgoose):
    """The k experts whose mean inputs agree most with a token."""

    def decide(self, group: RouteGroup, u: Tensor) -> Decision:
        """Score every mean against every token of u [..., d] and keep the best k."""
        return super().decide(group.by(mean), u)
