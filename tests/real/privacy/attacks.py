"""Attacks on what a bundle tells: which rows it is of, and which words stand in them.

The attacker has the base, what the bundle tells at each module, and a ground to hold it against: public text, or other
rows of the same task. Of a mean m over n rows and of the ground's mean g with covariance S,

    whitened   (x - g)' (S + ridge)^-1 (m - g)       the likelihood ratio of "x is one of the n" for normal rows
    plain      (x - g)' (m - g)                      which noise in all directions alike harms less

is high for an x that is among the rows (N. Homer et al., PLoS Genetics 4, 2008; C. Dwork et al., "Robust Traceability
from Trace Amounts", FOCS 2015). The gate takes the place of m - g for want of anything better. x is what a module sees
of a row on average, or of a word that the base reads alone; without reading, a word is scored by its tokens' rows of
the unembedding (the logit lens) and of the input embeddings (by cosine).
"""

import re
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from router.base.loading import Base
from router.base.module_paths import shared_input
from router.methods.features.covariance import Spread
from tests.real.privacy.auc import Floats

RIDGE = 0.1
"""Of the ground's covariance, relative to its mean variance: rows are fewer than dimensions."""
METRICS = ("plain", "whitened")
LENSES = ("unembedding", "embedding")
_WORD = re.compile(r"[^\W\d_]{3,}")
_NORMS = {
    "q_proj": "input_layernorm", "k_proj": "input_layernorm", "v_proj": "input_layernorm",
    "gate_proj": "post_attention_layernorm", "up_proj": "post_attention_layernorm",
}  # fmt: skip


def kind(path: str) -> str:
    """Name the kind of a module: the last parts of the names of those that read its input."""
    return ", ".join(each.rpartition(".")[2].removesuffix("_proj") for each in shared_input(path))


def products(seen: Tensor, apart: Tensor, ground: Spread, metric: str) -> Floats:
    """Score what a module sees of n things, [n, d], by what is told of it, apart from the ground, [d]."""
    x = seen.double() - ground.mean.double()
    if metric == "whitened":
        x = ground.raised(x, RIDGE, -1).double()
    return np.asarray(x @ apart.double())


def noisy(told: Tensor, ground: Tensor, size: float, draw: torch.Generator) -> Tensor:
    """Add noise to a vector [d], in all directions alike, of so many times its length apart from the ground [d]."""
    sigma = size * float(torch.linalg.vector_norm(told - ground)) / len(told) ** 0.5
    return told + sigma * torch.randn(told.shape, generator=draw)


class Lens:
    """Scores words by their tokens' rows of the unembedding or of the input embeddings, without reading them.

    What enters q, k, v, gate and up is the residual stream, normalised and scaled; what enters o and down is written to
    it by their weights. The bases that this is right for are built as Llama is.

    Args:
        base: The base model.
        tokens: Of each word.
    """

    def __init__(self, base: Base, tokens: Sequence[Sequence[int]]) -> None:
        model = self._model = base.model
        known = sorted({token for word in tokens for token in word})
        places = {token: at for at, token in enumerate(known)}
        self._words = [[places[token] for token in word] for word in tokens]
        embedding = model.get_input_embeddings().weight.detach().float()
        self._tables = {
            "unembedding": model.get_output_embeddings().weight.detach().float()[known] * model.base_model.norm.weight,
            "embedding": functional.normalize(embedding[known] - embedding.mean(0)),
        }

    def scores(self, path: str, apart: Tensor, through: str) -> Floats:
        """Score every word by what is told of a module's input, apart from the ground, [d], through one of `LENSES`."""
        block, _, name = path.rpartition(".")
        layer = block.rpartition(".")[0]
        with torch.inference_mode():
            if name in _NORMS:
                written = apart.float() / self._model.get_submodule(f"{layer}.{_NORMS[name]}").weight
            else:
                written = self._model.get_submodule(path).weight @ apart.float()
            found = self._tables[through] @ written
        return np.array([float(found[each].mean()) for each in self._words])


def words_of(texts: Collection[str]) -> dict[str, int]:
    """Count in how many texts each word of three letters and more stands."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in {*_WORD.findall(text)}:
            counts[word] = counts.get(word, 0) + 1
    return counts


def rare(texts: Collection[str], but: Collection[str], most: int = 2) -> list[str]:
    """List words that stand in few of some texts, and in none of others, in whatever case."""
    known = {word.lower() for word in words_of(but)}
    return sorted(word for word, count in words_of(texts).items() if count <= most and word.lower() not in known)


def is_name(word: str) -> bool:
    """Whether a word is written as a name is; texts' first words are, too, and stand in many texts."""
    return word[0].isupper() and word[1:].islower()
