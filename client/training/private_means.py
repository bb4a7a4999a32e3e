"""Means with noise: how little they tell of any one row is a number.

Every row's vector, all its modules' inputs together in the metric of public text, is clipped to one length; the mean
over n rows then changes by at most 2 C / n when one row is another, and Gaussian noise of a scale that the analytic
Gaussian mechanism (arXiv 1805.06530, as dp-accounting has it) gives for that change makes it (epsilon, delta)-
differentially private. The number of rows is taken for known. Modules that read one input share one noisy vector. Each
new release of means spends its epsilon again.

Noise is drawn in floating point, which a determined reader may look into (Mironov, CCS 2012).
"""

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence

import torch
from dp_accounting import get_sigma_gaussian
from torch import Tensor

from protocol.spec import Noise
from router.methods.features.mixture import RIDGE
from router.model.routed_model import RoutedModel
from router.training.mean_inputs import example_inputs

DELTA = 1e-5
CLIP = 1.0
"""Length to which a row is cut; that of public texts is 1 in the mean square."""
_COUNTS = (1, 2, 5)


def counted(rows: int) -> int:
    """Round a number of rows down to 1, 2 or 5 times a power of ten, since it is told."""
    scale = 10 ** (len(str(rows)) - 1)
    return max(count * scale for count in _COUNTS if count * scale <= rows)


def means(
    model: RoutedModel, modules: Sequence[str], batches: Iterable[Mapping[str, Tensor]], noise: Noise
) -> dict[str, Tensor]:
    """Average what enters modules that see prompts, and add noise.

    Args:
        model: The base, no expert on it.
        modules: Paths.
        batches: As `router.training.mean_inputs.example_inputs` takes them.
        noise: Its rows are those of the batches together.

    Returns:
        [d] float32 by path, of those modules alone that see prompts.
    """
    reader, public = model.features.mixtures.reader, model.features.mixtures.public
    told = [path for path in modules if reader.of_prompt(path)]
    sources = list(dict.fromkeys(reader.sources[path] for path in told))
    spreads = {path: public.spread(path, "pooled") for path in sources}
    # Such that the squared length of all inputs together is 1 in the mean over public texts.
    units = {path: math.sqrt(len(spread.mean) * len(sources)) for path, spread in spreads.items()}
    widths = [len(spread.mean) for spread in spreads.values()]
    total = torch.zeros(sum(widths), dtype=torch.float64)
    for rows in example_inputs(model.base, sources, batches):
        parts = [
            spread.raised(rows[path].cpu() - spread.mean, RIDGE, -0.5) / units[path] for path, spread in spreads.items()
        ]
        vectors = torch.cat(parts, dim=1).double()
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        total += (vectors * (CLIP / lengths.clamp(min=CLIP))).sum(0)
    # Nobody may draw the same noise again, so the seed of a run has no part in it.
    draw = torch.Generator().manual_seed(secrets.randbits(63))
    scale = 2 * CLIP / noise.rows * get_sigma_gaussian(noise.epsilon, noise.delta)
    noisy = total / noise.rows + scale * torch.randn(len(total), generator=draw, dtype=torch.float64)
    found = {
        path: spreads[path].mean + spreads[path].raised(part.unsqueeze(0) * units[path], RIDGE, 0.5)[0]
        for path, part in zip(sources, torch.split(noisy, widths), strict=True)
    }
    return {path: found[reader.sources[path]].clone() for path in told}
