"""The maths of a gate: trained as a sigmoid, used as a routing vector.

It is trained in `router.training.gated_linear` and used in `router.layer.topk`. Source: arXiv 2402.05859, section 3;
trap by trap in the tests. With u an activation that enters a linear module, W its weight, delta what an expert adds
there (`router.pool.expert_module`) and v its gate:

    training    y = W u + delta(u) * sigmoid(v . u)       v = 0 at the start, all else frozen
    routing     a_z = standardise(v_z) . standardise(u)   E = the k largest
                y = W u + sum over z in E of w_z delta_z(u),  w = softmax(a_z / sqrt(d))
"""

from torch import Tensor
from torch.nn import functional

EPS = 1e-5
"""Added to the variance: that of torch's LayerNorm, which the paper's code standardises with."""


def standardise(x: Tensor) -> Tensor:
    """Give x [..., d] mean 0 and biased variance 1 (up to `EPS`) over features; a constant vector becomes 0."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPS)
