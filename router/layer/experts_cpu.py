"""Ways to add the chosen experts' contributions in place; which is quickest depends on the shape of the work.

Each takes the experts of a module, inputs u [t, d], choices, and outputs y [t, o] in float32 or in the dtype
of u, and adds to y the sum over chosen z of w_z s_z B_z f_z(A_z u). Only chosen experts can reach y; whoever stands
in a choice at weight zero is not one of them, and not computed with, since zero times infinity is not zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from router.layer.choice import Choice, CommonChoice
from router.pool.expert_module import activated
from router.pool.group_view import ModuleExperts

Way = Callable[[ModuleExperts, Tensor, Choice, Tensor], None]


def add_one(module: ModuleExperts, u: Tensor, choice: CommonChoice, y: Tensor) -> None:
    """Serve one token, u [d] and y [o], where all experts are plain: matrices meet vectors, nothing is copied."""
    parts = module.parts
    for row, weight in zip(choice.experts, choice.weights, strict=True):
        part = parts[row]
        if weight and part is not None:
            y.addmv_(part.b, torch.mv(part.a, u), alpha=weight * part.scaling)


def add_common(module: ModuleExperts, u: Tensor, choice: CommonChoice, y: Tensor) -> None:
    """Give all tokens, u [t, d] and y [t, o], the same experts."""
    for row, weight in zip(choice.experts, choice.weights, strict=True):
        if weight:
            part = module.part(row)
            _add_product(y, activated(torch.mm(u, part.a_t), part.activation), part.b_t, weight * part.scaling)


def add_one_by_one(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Go token by token, u [t, d] and y [t, o], as if each came alone."""
    add = add_one if module.plain and y.dtype == u.dtype else add_common
    rows = zip(choice.experts.tolist(), choice.weights.tolist(), strict=True)
    for at, (experts, weights) in enumerate(rows):
        here = at if add is add_one else slice(at, at + 1)
        add(module, u[here], CommonChoice(experts, weights), y[here])


def add_sorted(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Sort tokens, u [t, d] and y [t, o], by expert: two matrix products for each expert that was chosen."""
    ordered, tokens, shares = _in_order(module, choice, choice.experts)
    chosen, counts = (found.tolist() for found in torch.unique_consecutive(ordered, return_counts=True))
    inputs = u.index_select(0, tokens)
    # One buffer for hidden values of all ranks, so that one product weighs them all.
    hidden = u.new_empty(len(tokens), module.shapes.rank)
    parts = [module.part(row) for row in chosen]
    pieces = list(torch.split(hidden, counts))
    for at, (part, mine) in enumerate(zip(parts, torch.split(inputs, counts), strict=True)):
        if len(part.a) < module.shapes.rank:
            pieces[at] = pieces[at][:, : len(part.a)]
        torch.mm(mine, part.a_t, out=pieces[at])
        if part.activation is not None:
            pieces[at].copy_(activated(pieces[at], part.activation))
    hidden.mul_(shares.to(hidden.dtype))
    outputs = u.new_empty(len(tokens), y.shape[1])
    for part, piece, out in zip(parts, pieces, torch.split(outputs, counts), strict=True):
        torch.mm(piece, part.b_t, out=out)
    y.index_add_(0, tokens, outputs.to(y.dtype))


def add_grouped(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Sort tokens, u [t, d] and y [t, o], by place: two grouped products a page, however many experts it holds."""
    keys, tokens, shares = _in_order(module, choice, module.keys[choice.experts])
    shares = shares.to(u.dtype)
    inputs = u.index_select(0, tokens)
    outputs = u.new_empty(len(keys), y.shape[1])
    start = 0
    for page in module.pages:
        # Places may have been added to the page since; nobody here chose them.
        ends = torch.searchsorted(keys, torch.arange(page.first, page.first + len(page.a)), right=True)
        end = int(ends[-1])
        if end > start:
            mine, offsets = slice(start, end), (ends - start).int()
            hidden = functional.grouped_mm(inputs[mine], page.a.transpose(1, 2), offs=offsets)
            hidden = activated(hidden, page.activation)
            outputs[mine] = functional.grouped_mm(hidden.mul_(shares[mine]), page.b, offs=offsets)
        start = end
    y.index_add_(0, tokens, outputs.to(y.dtype))


def add_concatenated(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Compute all experts for all tokens, u [t, d] and y [t, o], with share zero for those not chosen.

    Two plain products a page, for small pools of which every place is seen.
    """
    shares = choice.weights * module.scalings[choice.experts]
    keys = module.keys[choice.experts]
    for page, places in module.filled:
        here = (keys >= page.first) & (keys < page.first + places)
        full = shares.new_zeros(len(u), places)
        full.scatter_add_(1, torch.where(here, keys - page.first, 0), torch.where(here, shares, 0))
        full = full.to(u.dtype)
        r, d = page.a.shape[1:]
        hidden = functional.linear(u, page.a[:places].view(places * r, d)).view(-1, places, r)
        hidden = activated(hidden, page.activation)
        # Filled, since zero times infinity is not zero.
        hidden.mul_(full.unsqueeze(2)).masked_fill_((full == 0).unsqueeze(2), 0)
        _add_product(y, hidden.view(-1, places * r), page.b[:places].view(places * r, -1), 1.0)


def _add_product(y: Tensor, hidden: Tensor, b_t: Tensor, weight: float) -> None:
    if y.dtype == hidden.dtype:
        y.addmm_(hidden, b_t, alpha=weight)
    else:
        y.add_(torch.mm(hidden, b_t), alpha=weight)


def _in_order(module: ModuleExperts, choice: Choice, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort what was chosen, [t, k], by keys [t, k].

    Returns:
        Keys [n] and tokens [n], and weights times scalings [n, 1] float32; n is t * k but for weights of zero.
    """
    keys, order = torch.sort(keys.flatten(), stable=True)
    shares = (choice.weights * module.scalings[choice.experts]).flatten().index_select(0, order)
    if not bool(shares.all()):
        some = shares != 0
        keys, order, shares = keys[some], order[some], shares[some]
    return keys, order.div(choice.experts.shape[1], rounding_mode="floor"), shares.unsqueeze(1)
