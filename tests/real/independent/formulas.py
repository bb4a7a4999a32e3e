"""What a request is a mixture of, and who answers it: plain numbers in, plain numbers out.

Source: docs/methods.md, docs/decisions/0013-mixtures.md and the heads of router/methods/nnls_request.py,
router/methods/nnls_cautious.py and router/methods/features/mixture.py. Shares are found by coordinate descent, where
the product moves an active set.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

K = 2
"""Experts a token, as in the paper and in every release that says nothing else."""
ENDINGS = (16, 32, 64)
"""Tokens of what a request ends in, shortest first."""
_DIRECTIONS = 256
Floats = np.ndarray[Any, Any]


def metric(samples: Tensor) -> Tensor:
    """Describe samples [n, d] by a covariance [d, d]: the leading directions, one variance for the others, a ridge."""
    n, d = samples.shape
    x = samples - samples.mean(0)
    _, singular, directions = torch.linalg.svd(x, full_matrices=False)
    variances = singular.square() / (n - 1)
    total = float(variances.sum())
    kept = min(_DIRECTIONS, int((variances > 1e-12 * variances[0]).sum()))
    basis, rest = directions[:kept], float(variances[kept:].sum()) / max(d - kept, 1)
    covariance = basis.T @ torch.diag(variances[:kept] - rest) @ basis + rest * torch.eye(d, dtype=torch.float64)
    return covariance + 0.01 * total / d * torch.eye(d, dtype=torch.float64)


def solve(gram: Floats, target: Floats) -> Floats:
    """Find the c >= 0, [n], at which c' G c / 2 - b' c is least, one coordinate after the other.

    Raises:
        RuntimeError: What was found is no minimum.
    """
    c = np.zeros(len(target))
    for _ in range(200_000):
        before = c.copy()
        for z in range(len(c)):
            c[z] = max(0.0, c[z] + (target[z] - gram[z] @ c) / gram[z, z])
        if np.abs(c - before).max() < 1e-13:
            break
    # At the minimum nothing that is free has a slope, and what is at its bound would not rise.
    slope, scale = target - gram @ c, np.abs(gram).max()
    if (slope > 1e-9 * scale).any() or (np.abs(slope[c > 0]) > 1e-9 * scale).any():
        raise RuntimeError("Coordinate descent found no minimum.")
    return c


def families(gram: Floats) -> list[int]:
    """Number experts so that those of a cosine of .9 and more, and whoever is like these, have one number."""
    lengths = np.sqrt(np.diag(gram))
    near = gram >= 0.9 * np.outer(lengths, lengths)
    number = list(range(len(gram)))
    for z in range(len(gram)):
        for y in range(z):
            if near[z, y]:
                number = [number[y] if each == number[z] else each for each in number]
    return number


def request_weights(c: Floats, family: Sequence[int]) -> list[float]:
    """Turn shares into weights by docs/methods.md: a mass of 1 to 2 for few, 1.5 over more for the unfamiliar."""
    together: dict[int, float] = defaultdict(float)
    for share, each in zip(c, family, strict=True):
        together[each] += float(share)
    largest = sorted(together.values(), reverse=True)
    if largest[0] >= 0.5:
        two = sum(largest[:2]) / sum(largest)
        mass, most, least = 1 + min(max((two - 0.65) / 0.2, 0), 1), K, largest[0] / 4
    else:
        mass, most, least = 1.5, max(K, min(2 * K, 4)), 0.0
    order = sorted(range(len(c)), key=lambda z: (-c[z], z))
    kept = [z for z in order if c[z] > 0 and together[family[z]] > least][:most]
    weights = [0.0] * len(c)
    for z in kept:
        weights[z] = mass * float(c[z] / sum(c[y] for y in kept))
    whole = [sum(w for w, each in zip(weights, family, strict=True) if each == mine) for mine in family]
    return [w / max(sum_, 1.0) for w, sum_ in zip(weights, whole, strict=True)]


def half(c: Floats, family: Sequence[int]) -> bool:
    """Tell whether somebody, with all that are alike, has half of a request."""
    return any(
        sum(float(share) for share, each in zip(c, family, strict=True) if each == mine) >= 0.5 for mine in family
    )


def cautious_weights(c: Floats, family: Sequence[int]) -> list[float]:
    """Turn shares into weights by docs/methods.md: a share to the power of 1.5, which those alike divide among them."""
    weights = []
    for share, mine in zip(c, family, strict=True):
        together = sum(float(other) for other, each in zip(c, family, strict=True) if each == mine)
        weights.append(min(together, 1.0) ** 1.5 * float(share) / together if share > 0 else 0.0)
    most = K if half(c, family) else max(K, min(2 * K, 4))
    kept = sorted(range(len(c)), key=lambda z: (-weights[z], z))[:most]
    return [weight if z in kept and weight > 1e-3 else 0.0 for z, weight in enumerate(weights)]
