"""A request as a mixture of what experts were trained on.

The mean u of what enters the base's modules over the request's tokens, less that of public text, is taken for a
mixture of the experts' means: with d_z = mean_z - mean of public text, S the covariance of public texts' means, and M
its regularised inverse,

    c = argmin over c >= 0 of  c' G c / 2 - b' c,   G_zy = mean over inputs of d_z' M d_y / d,   b_z likewise with u

over the distinct inputs of modules that see the prompt and whose mean every expert tells. In M's metric what public
texts vary in anyhow counts little. For one of an expert's own requests c is near 1 for that expert and near 0 for all
others; for a request that needs two, near 1/2 for both.

A request may end in what it is really about: a chat that turned, a text with a question below. `latest` solves endings
of the request, each read as if it were all, and takes the shortest of which somebody has half; if nobody has half of
any, the whole.

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
from router.base.batching import Prompt, PromptLike, read_prompts
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
ENDINGS = (16, 32, 64)
"""Tokens of a request's endings that are solved alone."""
_HALF = 0.5
"""The largest share from which on a request is familiar."""
_KINDS = 4
"""Sets of inputs for which products are kept."""
_SPARE = 8
"""Experts that may be gone before all products are worked out anew."""


class Shares(NamedTuple):
    """What share of each request is each expert's."""

    shares: Floats
    """c, [b, n], experts in pool order."""
    alike: NDArray[np.int64]
    """[n], equal numbers for experts that cannot be told apart."""


def familiar(c: Floats, alike: NDArray[np.int64]) -> bool:
    """Tell whether an expert, with who is alike [n], has half of a request of shares c [n]."""
    return bool(np.bincount(alike, weights=c).max(initial=0) >= _HALF)


class Mixtures:
    """Solves requests for shares: a reader reads them with the base, and public text is what they are held against."""

    def __init__(self, reader: Reader, public: PublicText) -> None:
        self.reader, self.public = reader, public
        self._products: dict[tuple[str, tuple[str, ...]], _Products] = {}
        """By what public text says, and the inputs."""
        self._told: WeakKeyDictionary[ExpertPool, tuple[str, ...]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def shares(self, pool: ExpertPool, inputs: Sequence[PromptLike]) -> Shares:
        """Solve requests; an expert that is not in the pool has no part in it.

        What experts' means are worked out to is kept, so an expert that joins costs its products with the others. The
        pool holds one at least.

        Raises:
            Refused: `STATISTICS_MISSING` if there is no input of which all experts tell the mean.
        """
        told = self._told_by(pool)
        with self._lock:
            at = self.public.digest, told
            known = self._products[at] = self._grown(told, self._products.pop(at, _NOTHING), pool.experts)
            for former in list(self._products)[:-_KINDS]:
                del self._products[former]
        rows = [known.rows[expert.digest] for expert in pool.experts]
        gram = known.gram[np.ix_(rows, rows)]
        if not inputs:
            return Shares(np.zeros((0, len(rows))), _alike(gram))
        even = gram + _EVEN * gram.trace() / len(rows) * np.eye(len(rows))
        targets = known.targets(self.reader.pooled(inputs, told))[:, rows]
        return Shares(np.stack([nnls(even, target) for target in targets]), _alike(gram))

    def latest(self, pool: ExpertPool, inputs: Sequence[PromptLike]) -> Shares:
        """Solve requests as `shares`, each by its shortest ending that is familiar, or whole where none is."""
        prompts = read_prompts(self.reader.base, inputs)
        found, alike = self.shares(pool, [])
        found = np.zeros((len(prompts), found.shape[1]))
        left = list(range(len(prompts)))
        for length in (*ENDINGS, None):
            trying = [at for at in left if length is None or len(prompts[at].tokens) > length]
            if not trying:
                continue
            solved = self.shares(pool, [self._ending(prompts[at], length) for at in trying]).shares
            for at, c in zip(trying, solved, strict=True):
                if length is None or familiar(c, alike):
                    found[at] = c
                    left.remove(at)
        return Shares(found, alike)

    def _ending(self, prompt: Prompt, length: int | None) -> Prompt:
        """Cut a request to its last tokens, behind the token that begins every text, if the base has one."""
        if length is None:
            return prompt
        begins = prompt.tokens[:1] == [self.reader.base.tokenizer.bos_token_id]
        return Prompt("", [*prompt.tokens[:begins], *prompt.tokens[begins - length :]])

    def knows(self, pool: ExpertPool) -> bool:
        """Tell whether requests among a pool's experts are solved without anything being worked out first."""
        if not all(map(self._means, pool.experts)):
            return False
        known = self._products.get((self.public.digest, self._told_by(pool)))
        return known is not None and all(expert.digest in known.rows for expert in pool.experts)

    def _means(self, expert: Expert) -> dict[str, Tensor]:
        """Means [d] by the first of the modules that read an input."""
        reader = self.reader
        return {reader.sources[path]: mean for path, mean in expert.means.items() if reader.of_prompt(path)}

    def _told_by(self, pool: ExpertPool) -> tuple[str, ...]:
        """Name the inputs of which all experts tell the mean."""
        if pool in self._told:
            return self._told[pool]
        told = set.intersection(*(set(self._means(expert)) for expert in pool.experts))
        if not told:
            raise Refused(
                Code.STATISTICS_MISSING,
                "There is no module of which all experts that may answer tell the mean input.",
                "Allow only experts that tell means of the same modules, or choose another method.",
            )
        self._told[pool] = tuple(path for path in self.reader.sources if path in told)
        return self._told[pool]

    def _grown(self, told: Sequence[str], known: "_Products", experts: Sequence[Expert]) -> "_Products":
        """Work out what is not known yet; all, where most of what is known is of experts that are gone."""
        new = [expert for expert in experts if expert.digest not in known.rows]
        if not new:
            return known
        gone = len(known.rows) + len(new) - len(experts)
        if gone > _SPARE and 2 * gone > len(known.rows):
            known, new = _NOTHING, list(experts)
        before, means = len(known.rows), [self._means(expert) for expert in new]
        gram = np.pad(known.gram, (0, len(new)))
        whitened, centres = dict(known.whitened), dict(known.centres)
        with torch.inference_mode():
            for path in told:
                spread, device = self.public.spread(path, "pooled"), means[0][path].device
                apart = torch.stack([each[path].cpu() for each in means]) - spread.mean
                more = (spread.raised(apart, RIDGE, -1) / len(spread.mean)).to(device)
                rows = whitened[path] = torch.cat([whitened[path], more]) if before else more
                centres[path] = spread.mean.to(device)
                gram[:, before:] += (rows @ apart.to(device).T).double().cpu().numpy() / len(told)
        gram[before:, :before] = gram[:before, before:].T
        gram[before:, before:] = (gram[before:, before:] + gram[before:, before:].T) / 2
        added = {expert.digest: before + at for at, expert in enumerate(new)}
        return _Products({**known.rows, **added}, gram, whitened, centres)


@dataclass(frozen=True, eq=False)
class _Products:
    """Experts' products with each other over one set of inputs."""

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


_NOTHING = _Products({}, np.zeros((0, 0)), {}, {})


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
