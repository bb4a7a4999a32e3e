"""A request as a mixture of what experts were trained on.

The mean u of what enters the base's modules over the request's tokens, less that of public text, is taken for a
mixture of the experts' means: with d_z = mean_z - mean of public text, S the covariance of public texts' means, and M
its regularised inverse,

    c = argmin over c >= 0 of  c' G c / 2 - b' c,   G_zy = mean over inputs of d_z' M d_y / d,   b_z likewise with u

over the distinct inputs of modules that see the prompt and whose mean every expert tells. In M's metric what public
texts vary in anyhow counts little. For one of an expert's own requests c is near 1 for that expert and near 0 for all
others; for a request that needs two, near 1/2 for both.

Experts whose means point the same way cannot be told apart: a small ridge lets equals share, and `alike` names them,
so that a method can count them as one.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.errors import Code, Refused
from router.base.batching import PromptLike
from router.methods.features.activations import Reader
from router.methods.features.background import PublicText
from router.methods.features.nnls import Floats, nnls
from router.pool.expert import Expert
from router.pool.pool import ExpertPool

RIDGE = 0.01
"""Of the covariance, relative to its mean variance."""
_EVEN = 1e-3
"""Of G, relative to its mean diagonal: equal experts share, and hundreds that overlap can be solved for."""
_ALIKE = 0.9
"""Cosine in M's metric from which on two experts count as one."""
_KINDS = 4
"""Sets of inputs for which products are kept."""
_SPARE = 8


class Shares(NamedTuple):
    """What share of each request is each expert's."""

    shares: Floats
    """c, [b, n], experts in pool order."""
    alike: NDArray[np.int64]
    """[n], equal numbers for experts that cannot be told apart."""


class Mixtures:
    """Solves requests for shares.

    Args:
        reader: Reads requests with the base.
        public: What public text looks like.
    """

    def __init__(self, reader: Reader, public: PublicText) -> None:
        self.reader, self.public = reader, public
        self._products: dict[tuple[str, ...], _Products] = {}
        self._told: WeakKeyDictionary[ExpertPool, tuple[str, ...]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def shares(self, pool: ExpertPool, inputs: Sequence[PromptLike]) -> Shares:
        """Solve requests; an expert that is not in the pool has no part in it.

        What experts' means are worked out to is kept, so an expert that joins costs its products with the others.

        Args:
            pool: The experts that may answer, one at least.
            inputs: The requests.

        Raises:
            Refused: `STATISTICS_MISSING` if there is no input of which all experts tell the mean.
        """
        told = self._told.get(pool)
        if told is None:
            told = self._told[pool] = self._told_by_all(pool.experts)
        with self._lock:
            products = self._products.pop(told, None)
            if products is None or products.crowded(pool.experts):
                products = _Products(told, self.public)
            products.include([(expert, self._means(expert)) for expert in pool.experts])
            self._products[told] = products
            for former in list(self._products)[:-_KINDS]:
                del self._products[former]
            known = products.known()
        rows = [known.rows[expert.digest] for expert in pool.experts]
        gram = known.gram[np.ix_(rows, rows)]
        even = gram + _EVEN * gram.trace() / len(rows) * np.eye(len(rows))
        if not inputs:
            return Shares(np.zeros((0, len(rows))), _alike(gram))
        targets = known.targets(self.reader.pooled(inputs, told))[:, rows]
        return Shares(np.stack([nnls(even, target) for target in targets]), _alike(gram))

    def _means(self, expert: Expert) -> dict[str, Tensor]:
        """Means [d] by the first of the modules that read an input."""
        reader = self.reader
        return {reader.sources[path]: mean for path, mean in expert.means.items() if reader.of_prompt(path)}

    def _told_by_all(self, experts: Sequence[Expert]) -> tuple[str, ...]:
        told = set.intersection(*(set(self._means(expert)) for expert in experts))
        if not told:
            raise Refused(
                Code.STATISTICS_MISSING,
                "There is no module of which all experts that may answer tell the mean input.",
                "Allow only experts that tell means of the same modules, or choose another method.",
            )
        return tuple(path for path in self.reader.sources if path in told)


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of some experts; more may have come since."""

    rows: Mapping[str, int]
    """By bundle digest."""
    gram: Floats
    """G, [n, n]."""
    whitened: Mapping[str, Tensor]
    """M d_z / d, [n, d] by path."""
    centres: Mapping[str, Tensor]
    """Means [d] of public text by path."""

    def targets(self, pooled: Mapping[str, Tensor]) -> Floats:
        """Compute b from requests' means [b, d] by path; returns [b, n]."""
        found = [(pooled[path] - self.centres[path]) @ rows.T for path, rows in self.whitened.items()]
        return torch.stack(found).double().mean(0).cpu().numpy()


class _Products:
    """Experts' products with each other over one set of inputs; only grows."""

    def __init__(self, told: Sequence[str], public: PublicText) -> None:
        self._told, self._public = told, public
        self._rows: dict[str, int] = {}
        self._gram = np.zeros((0, 0))
        self._whitened: dict[str, Tensor] = {}
        self._centres: dict[str, Tensor] = {}

    def crowded(self, experts: Sequence[Expert]) -> bool:
        """Whether most of what is known is of experts that are gone, just as another one comes."""
        new = sum(expert.digest not in self._rows for expert in experts)
        gone = len(self._rows) + new - len(experts)
        return new > 0 and gone > _SPARE and 2 * gone > len(self._rows)

    def include(self, experts: Sequence[tuple[Expert, Mapping[str, Tensor]]]) -> None:
        """Work out what is not known yet."""
        new = [(expert, means) for expert, means in experts if expert.digest not in self._rows]
        if not new:
            return
        before, count = len(self._rows), len(self._rows) + len(new)
        gram = np.zeros((count, count))
        gram[:before, :before] = self._gram
        with torch.inference_mode():
            for path in self._told:
                spread = self._public.spread(path, "pooled")
                apart = torch.stack([means[path].cpu() for _, means in new]) - spread.mean
                device = new[0][1][path].device
                more = (spread.whitened(apart, RIDGE) / len(spread.mean)).to(device)
                rows = torch.cat([self._whitened[path], more]) if before else more
                self._whitened[path], self._centres[path] = rows, spread.mean.to(device)
                gram[:, before:] += (rows @ apart.to(device).T).double().cpu().numpy() / len(self._told)
        gram[before:, :before] = gram[:before, before:].T
        gram[before:, before:] = (gram[before:, before:] + gram[before:, before:].T) / 2
        self._gram = gram
        self._rows = self._rows | {expert.digest: before + at for at, (expert, _) in enumerate(new)}

    def known(self) -> _Known:
        """Return what is known now; it stays as it is."""
        return _Known(self._rows, self._gram, dict(self._whitened), dict(self._centres))


def _alike(gram: Floats) -> NDArray[np.int64]:
    """Number experts so that those that cannot be told apart, by a chain of likenesses, have one number."""
    lengths = np.sqrt(np.maximum(gram.diagonal(), np.finfo(np.float64).tiny))
    near = gram >= _ALIKE * np.outer(lengths, lengths)
    np.fill_diagonal(near, val=True)
    labels = np.arange(len(gram))
    while True:
        lowest = np.where(near, labels, len(gram)).min(axis=1)
        if (lowest == labels).all():
            return labels
        labels = lowest
