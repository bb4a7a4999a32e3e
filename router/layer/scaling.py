"""What chosen experts do to the base's own product: (IA)3 and DoRA.

With c, e and h the weighted sums of the chosen experts' vectors (`router.pool.expert_module.Scales`), y = W u + b
becomes

    y + W (c * u) + e * y + h

W is linear, so the vectors are combined first: however many experts scale a token's input, it costs one more
product of the base, and on a CPU a token that meets no such expert costs none.
"""

import torch
from torch import Tensor

from router.base.linear import Linear
from router.layer.choice import Choice, CommonChoice
from router.pool.expert_module import Scales, without_bias
from router.pool.group_view import ModuleExperts


def add_scaled(module: ModuleExperts, linear: Linear, u: Tensor, choice: Choice | CommonChoice, y: Tensor) -> Tensor:
    """Scale y [..., o], what the base makes of u [..., d], as the chosen experts do; their factors are added later."""
    inner, outer, shift = (_combined(module, name, choice) for name in Scales._fields)
    if inner is outer is shift is None:
        return y
    rows = y.reshape(-1, y.shape[-1]).float()
    result = rows if outer is None else torch.addcmul(rows, rows, outer)
    if shift is not None:
        result = result + shift
    if inner is not None:
        result = result + _second_product(linear, u.reshape(-1, u.shape[-1]), inner)
    return result.to(y.dtype).view_as(y)


def _combined(module: ModuleExperts, name: str, choice: Choice | CommonChoice) -> Tensor | None:
    """Return one of c, e, h: [t, n] for each token, or [n] for all alike; None for zeros."""
    pages = module.vectors(name)
    if pages is None:
        return None
    if isinstance(choice, Choice):
        return pages.combined(choice.experts, choice.weights)
    total = None
    for row, weight in zip(choice.experts, choice.weights, strict=True):
        vector = getattr(module.part(row).scales, name, None)
        if vector is not None:
            total = vector * weight if total is None else total.add_(vector, alpha=weight)
    return total


def _second_product(linear: Linear, u: Tensor, c: Tensor) -> Tensor:
    if c.dim() == 1 or c.is_cuda:
        return without_bias(linear, (u * c).to(u.dtype)).float()
    # Looking which tokens need it would make a GPU wait; a CPU gains the product of all the others.
    own = c.any(dim=1).nonzero().squeeze(1)
    product = without_bias(linear, (u[own] * c[own]).to(u.dtype)).float()
    return product.new_zeros(len(u), product.shape[1]).index_copy_(0, own, product)
