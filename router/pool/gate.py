"""A gate: trained as a sigmoid (`router.training.gated_linear`), used as a routing vector (`router.layer.topk`).

Source: arXiv 2402.05859, section 3; trap by trap in the tests.
"""

from torch import Tensor
from torch.nn import functional

EPS = 1e-5
"""Added to the variance: that of torch's LayerNorm, which the paper's code standardises with."""


def standardise(x: Tensor) -> Tensor:
    """Give x [..., d] mean 0 and biased variance 1 (up to `EPS`) over features; a constant vector becomes 0."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPS)
