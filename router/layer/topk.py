"""Which experts: one routing product for all modules that read the same input.

What comes out, at a module with experts z that each have a gate v_z, factors A_z, B_z and scaling s_z:

    standardise(x) = (x - mean x) / sqrt(var x + eps)          over features; var is biased, eps = 1e-5
    a_z = standardise(v_z) . standardise(u)                    affinity of an activation u
    score_z = a_z / sqrt(d) + bias_z                           bias_z and tau are 0 and 1 but in a calibrated release
    E = the k largest score_z                                  ties go to who came first; everybody where fewer than k
    w_z = exp(score_z / tau) / sum over e in E of exp(score_e / tau)
    y = W u + b + sum over z in E of w_z s_z B_z A_z u         other kinds than LoRA: `router.pool.expert_module`

`tests/router/reference.py` computes just this in float64, one token after the other, and every quicker way, here and
in `router.layer.dispatch`, is held against it.

Since a standardised gate has mean zero, `vbar . ubar = (vbar . u) / sigma`: the order of the raw products is
the order of the scores, and sigma, one number a token, is wanted in the softmax alone. It comes from |u|^2 and
from the mean, which the row of 1 / d in front of the gates yields with the same product. Where the mean is
large against sigma that difference would lose digits; there the activation itself is standardised.

A calibrated release adds its bias to a score in units of the softmax, so sigma sqrt(d) bias to the raw product.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from router.layer import topk_gpu
from router.layer.choice import Choice, CommonChoice, concatenate_choices
from router.layer.topk_single import TRUSTED, choose_for_one
from router.pool.gate import EPS, standardise
from router.pool.group_view import ModuleExperts, RouteGroup

_SCORES = 1 << 20
"""Scores held at a time, so that memory does not grow with the pool."""

Decision = list[Choice | CommonChoice | None]


def choose_topk(group: RouteGroup, u: Tensor, k: int, temperature: float = 1.0) -> Decision:
    """Choose the k best experts for u [..., d] at every module of a group; ties go to who came first.

    In float32 whatever the model computes in: bfloat16 scores would change the chosen pair for 0.5 to 2.8 % of tokens.
    The temperature divides the scores before the softmax.

    Returns:
        One choice a slot; None where no expert touches the module.
    """
    d = u.shape[-1]
    if u.is_cuda:
        return list(topk_gpu.choose_on_gpu(group, u.reshape(-1, d), k, temperature))
    if u.numel() == d:
        found = choose_for_one(group, u, k, temperature)
        if found is not None:
            return [*found]
    return in_pieces(
        u, (group.length + 1) * len(group.counts), lambda chunk, _: _select_many(group, chunk, k, temperature)
    )


def in_pieces(u: Tensor, scores: int, decide: Callable[[Tensor, int], Decision]) -> Decision:
    """Decide for u [..., d] in pieces, so that memory stays bounded where each token takes so many scores.

    `decide` chooses for some of the tokens, [t, d] float32, of which it is told the first one's position.
    """
    tokens = u.reshape(-1, u.shape[-1]).float()
    step = max(1, _SCORES // scores)
    if len(tokens) <= step:
        return decide(tokens, 0)
    parts = [decide(chunk, at * step) for at, chunk in enumerate(torch.split(tokens, step))]
    return [concatenate_choices(choices) for choices in zip(*parts, strict=True)]


def _select_many(group: RouteGroup, u: Tensor, k: int, temperature: float) -> Decision:
    d, slots = u.shape[1], len(group.counts)
    scores = products(group, u)
    mean_squared = scores[:, :1].square()
    norm = torch.linalg.vector_norm(u, dim=1, keepdim=True)
    variance = norm.square_().div_(d).sub_(mean_squared).clamp_(min=0).add_(EPS)
    if bool((mean_squared <= TRUSTED * variance).all()):
        unit = variance.mul_(d).rsqrt_()
    else:
        scores = products(group, standardise(u))
        unit = torch.full_like(variance, 1 / math.sqrt(d))
    table, calibration = scores[:, slots:].view(len(u), group.length, slots), group.calibration
    if calibration is not None:
        table[:, : len(calibration.bias)].addcmul_(unit.reciprocal()[:, :, None], calibration.bias)
    if temperature != 1:
        unit.div_(temperature)
    found: Decision = []
    for slot, count in enumerate(group.counts):
        if not count:
            found.append(None)
            continue
        rows, scores = _best(_seen(group, slot, table[:, :, slot]), min(k, count))
        here = unit if calibration is None else unit / calibration.temperatures[slot]
        found.append(Choice(rows, torch.softmax(scores * here, dim=1)))
    return found


def products(group: RouteGroup, u: Tensor) -> Tensor:
    """Multiply u [t, d] with every vector of a group.

    Returns:
        [t, n] float32; the means of u, one a slot, then each expert's products, one a slot.
    """
    blocks = group.blocks
    if len(blocks) == 1:
        return functional.linear(u, blocks[0])
    scores = u.new_empty(len(u), sum(map(len, blocks)))
    for block, mine in zip(blocks, torch.split(scores, [*map(len, blocks)], dim=1), strict=True):
        torch.mm(u, block.T, out=mine)
    return scores


def _seen(group: RouteGroup, slot: int, scores: Tensor) -> Tensor:
    unseen = group.unseen[slot]
    # Filled, not added to: a score that is not a number would stay one.
    return scores if unseen is None else scores.index_fill_(1, unseen, -torch.inf)


def choose_by_scores(module: ModuleExperts, scores: Tensor, k: int, temperature: float) -> Choice:
    """Choose as `choose_topk` by scores [t, n], by row, that are wanted as they are; they are written over."""
    rows, found = _best(_seen(module.group, module.slot, scores), min(k, len(module)))
    return Choice(rows, torch.softmax(found / temperature, dim=1))


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return rows and scores [t, k] of the best, the lowest row first among equals."""
    if scores.is_cuda:
        return topk_gpu.stable_topk(scores, k)
    found, rows = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if bool((found[:, 1:] == found[:, :-1]).any()):
        # topk leaves the order of equal scores open, a stable sort does not.
        found, rows = torch.sort(scores, dim=1, descending=True, stable=True)
    return rows[:, :k], found[:, :k]
