"""How likely a model is to write a target after its input: the one place where targets are scored."""

import inspect
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from router.base.batching import TokenPair, pair_batch
from router.base.loading import Base
from router.base.tokens import IGNORED


class Likelihood(NamedTuple):
    """What a model thinks of one target."""

    total: float
    """Logarithm of the target's probability, in nats: the sum over its tokens, the end token among them."""
    tokens: int
    """Tokens that were predicted."""
    greedy: bool
    """Whether the model writes just this target when it takes the likeliest token each time."""

    @property
    def mean(self) -> float:
        """Nats a token; not a number where nothing was predicted."""
        return self.total / self.tokens if self.tokens else math.nan


def likelihoods(base: Base, pairs: Sequence[TokenPair]) -> list[Likelihood]:
    """Run the base, with whatever it is routed by, once over a batch of inputs and targets.

    Memory for logits is held for the targets' positions alone, as far as the base can leave others out.
    """
    batch, labels = pair_batch(base, pairs)
    with torch.inference_mode():
        if base.architecture == "decoder-only":
            # A position predicts the next one; up to the shortest input nothing that counts is predicted.
            first = max(min(len(pair.input) for pair in pairs) - 1, 0)
            labels = labels[:, first + 1 :]
            can_leave_out = "logits_to_keep" in inspect.signature(base.model.forward).parameters
            kept = {"logits_to_keep": labels.shape[1] + 1} if can_leave_out else {}
            logits = base.model(**batch, **kept).logits[:, -labels.shape[1] - 1 : -1]
        else:
            logits = base.model(**batch, labels=labels).logits
        wanted = labels != IGNORED
        rows = torch.nonzero(wanted)[:, 0]
        chances = torch.log_softmax(logits[wanted].float(), dim=1)
        targets = labels[wanted]
        found = chances.gather(1, targets[:, None])[:, 0].double()
        empty = found.new_zeros(len(pairs))
        totals = empty.index_add(0, rows, found).tolist()
        missed = empty.index_add(0, rows, (chances.argmax(dim=1) != targets).double()).tolist()
        counts = wanted.sum(1).tolist()
    return [Likelihood(total, count, not wrong) for total, count, wrong in zip(totals, counts, missed, strict=True)]
