"""SpectR: an expert is scored by how much of a token its whole update lets through.

Source: W. Fleshman, B. Van Durme, "SpectR: Dynamically Composing LM Experts with Spectral Routing",
arXiv 2504.03454.

Score: ||s B A u||, which with the singular values S and right singular vectors V of s B A is ||S V' u||, the paper's
form; weights softmax(score / T) over the k best, T = 1. Here the norm is taken of R A u, with s B = Q R: Q changes
no length, R is as small as the rank, and the tensors that serve are A itself and one [r, r] an expert.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from router.layer.choice import Choice, CommonChoice
from router.layer.topk import Decision, choose_by_scores, in_pieces
from router.pool.expert_module import ExpertModule
from router.pool.group_view import ModuleExperts


class Spectr:
    """The k experts that answer a token loudest."""

    def __init__(self, k: int, temperature: float) -> None:
        self._k, self._temperature = k, temperature

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice | CommonChoice | None:
        """Score every expert's update of every token of u [..., d] and keep the best k."""
        length = module.group.length

        def decide(tokens: Tensor, _start: int) -> Decision:
            scores = tokens.new_full((len(tokens), length), -torch.inf)
            for row in module.rows:
                scores[:, row] = update_norms(module.part(row), tokens)
            return [choose_by_scores(module, scores, self._k, self._temperature)]

        return in_pieces(u, length, decide)[0]


def update_norms(part: ExpertModule, u: Tensor) -> Tensor:
    """Compute ||s B A u|| for u [t, d] float32; returns [t] float32."""
    hidden = u @ part.a.float().T
    return torch.linalg.vector_norm(hidden @ triangle(part).T, dim=1)


_triangles: WeakKeyDictionary[ExpertModule, Tensor] = WeakKeyDictionary()


def triangle(part: ExpertModule) -> Tensor:
    """Return R [r, r] of s B = Q R, worked out once an expert."""
    found = _triangles.get(part)
    if found is None:
        with torch.inference_mode(mode=False), torch.no_grad():
            found = torch.linalg.qr(part.b.double() * part.scaling).R.float()
        _triangles[part] = found
    return found
