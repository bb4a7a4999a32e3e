"""LAG: Arrow picks a few experts for each token, SpectR takes the best of them.

Source: W. Fleshman, B. Van Durme, "LoRA-Augmented Generation (LAG) for Knowledge-Intensive Language Tasks",
arXiv 2507.05346.

First stage: the experts with the largest |v_z . u|, as in `router.methods.arrow`. Second: of these the one with the
largest ||s B A u||, as in `router.methods.spectr`, at weight 1. A request's k and temperature have no part in it.
"""

import torch
from torch import Tensor

from router.layer.choice import Choice
from router.methods.arrow import Arrow
from router.methods.spectr import update_norms
from router.pool.group_view import ModuleExperts

FILTERED = 20
"""Experts a token that pass the first stage."""


class Lag:
    """The expert that answers a token loudest, among those whose main direction it points along."""

    def __init__(self, filtered: int = FILTERED) -> None:
        self._filter = Arrow(filtered, 1.0)

    def choose(self, module: ModuleExperts, u: Tensor) -> Choice | None:
        """Filter, then rank for every token of u [..., d]."""
        passed = self._filter.choose(module, u)
        if not isinstance(passed, Choice):
            return None
        tokens = u.reshape(-1, u.shape[-1]).float()
        norms = torch.empty_like(passed.weights)
        for row in torch.unique(passed.experts).tolist():
            at, place = torch.nonzero(passed.experts == row, as_tuple=True)
            norms[at, place] = update_norms(module.part(row), tokens[at])
        # By row first, so that of equal norms the expert that came first wins.
        rows, order = passed.experts.sort(dim=1)
        _, loudest = norms.gather(1, order).sort(dim=1, descending=True, stable=True)
        chosen = rows.gather(1, loudest[:, :1])
        return Choice(chosen, torch.ones_like(chosen, dtype=torch.float32))
