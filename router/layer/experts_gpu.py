"""Ways to choose experts and to add what they contribute on a GPU, none of which waits for the device.

Triton's kernels where there is Triton, else plain PyTorch. All of it depends on shapes and on what the host knows
of a generation, never on values, so it can be captured in a CUDA graph; calibration is left out there. An expert that
fills a row up at weight zero may be computed with, but nothing of it reaches y.
"""

import torch
from torch import Tensor
from torch.nn import functional

from router.layer.choice import Choice
from router.layer.experts_cpu import Way
from router.layer.kernels import available
from router.pool.expert_module import activated
from router.pool.group_view import ModuleExperts

_GATHERED = 1 << 26
"""Numbers of gathered factors held at a time."""
_HOPPER = (9, 0)
"""Compute capability from which on torch's grouped product reads its offsets on the device."""
_ALIGNED_BYTES = 16
_FEW_TOKENS = 64


def offered(module: ModuleExperts, u: Tensor) -> dict[str, Way]:
    """List by name the ways that can serve inputs u [t, d]; the first goes where nothing can be measured."""
    view = module.group.view
    if available.kernels(u.dtype) is not None and view.identity and view.dtype == u.dtype:
        few, many = ("rows", add_rows), ("tiles", add_tiles)
        return dict([few, many] if len(u) <= _FEW_TOKENS else [many, few])
    ways: dict[str, Way] = {"gathered": add_gathered}
    if _groups_on_device(module, u):
        ways["grouped"] = add_grouped
    return ways


def add_rows(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Serve token by token, u [t, d] and y [t, o]."""
    with available.beside(u):
        available.launcher().add_rows(module.group.view, module.slot, available.contiguous_rows(u), choice, y)


def add_tiles(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Sort tokens, u [t, d] and y [t, o], by expert, and serve them tile by tile."""
    with available.beside(u):
        available.launcher().add_tiles(module.group.view, module.slot, available.contiguous_rows(u), choice, y)


def add_gathered(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Copy the factors of every token's experts, u [t, d] and y [t, o], a few tokens at a time."""
    k, widest = choice.experts.shape[1], max(1, module.shapes.rank) * max(u.shape[1], y.shape[1])
    step = max(1, _GATHERED // (k * widest))
    shares = choice.weights * module.scalings[choice.experts]
    keys = module.keys[choice.experts]
    for start in range(0, len(u), step):
        now = slice(start, start + step)
        mine, total = u[now], torch.zeros_like(y[now], dtype=torch.float32)
        for page in module.pages:
            place = keys[now] - page.first
            # Filled, since a factor that nobody here chose may not be finite, nor what it makes of a token.
            elsewhere = ((place < 0) | (place >= len(page.a)) | (shares[now] == 0))[:, :, None]
            place = place.clamp(0, len(page.a) - 1)
            hidden = torch.einsum("td,tkrd->tkr", mine, page.a[place])
            hidden = activated(hidden, page.activation).float() * shares[now, :, None]
            hidden = hidden.masked_fill_(elsewhere, 0).to(u.dtype)
            out = torch.einsum("tkr,tkro->tko", hidden, page.b[place]).masked_fill_(elsewhere, 0)
            total += out.sum(1, dtype=torch.float32)
        y[now] += total


def add_grouped(module: ModuleExperts, u: Tensor, choice: Choice, y: Tensor) -> None:
    """Sort tokens, u [t, d] and y [t, o], page by page: two grouped products each, far below torch's 1024 groups."""
    k = choice.experts.shape[1]
    keys = module.keys[choice.experts].flatten()
    shares = (choice.weights * module.scalings[choice.experts]).flatten()
    total = torch.zeros(len(y), y.shape[1], dtype=torch.float32, device=y.device)
    for page in module.pages:
        places = len(page.a)
        place = keys - page.first
        place = torch.where((place >= 0) & (place < places) & (shares.view(-1) != 0), place, places)
        ordered, order = torch.sort(place, stable=True)
        ends = torch.searchsorted(ordered, torch.arange(places, device=u.device), right=True).int()
        inputs = u.index_select(0, order.div(k, rounding_mode="floor"))
        hidden = activated(functional.grouped_mm(inputs, page.a.transpose(1, 2), offs=ends), page.activation)
        hidden = _aligned(hidden.float() * shares[order, None], u.dtype)
        outputs = functional.grouped_mm(hidden, page.b, offs=ends)
        # Tokens of other pages come last, where the product writes nothing.
        outputs = torch.where((ordered < places)[:, None], outputs, 0)
        # Put back by a gather, which sums in a fixed order where index_add_ would not.
        total += outputs[torch.argsort(order)].view(len(u), k, -1).sum(1, dtype=torch.float32)
    y += total


def _aligned(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast [t, r], with rows so far apart as torch's grouped product asks for, whatever the rank."""
    numbers = _ALIGNED_BYTES // dtype.itemsize
    room = hidden.new_empty(len(hidden), -(-hidden.shape[1] // numbers) * numbers, dtype=dtype)
    room[:, : hidden.shape[1]] = hidden
    return room[:, : hidden.shape[1]]


def _groups_on_device(module: ModuleExperts, u: Tensor) -> bool:
    factors = [factor for page in module.pages for factor in (page.a, page.b)]
    aligned = all(factor.shape[2] * factor.itemsize % _ALIGNED_BYTES == 0 for factor in factors)
    return u.dtype == torch.bfloat16 and aligned and torch.cuda.get_device_capability(u.device) >= _HOPPER
