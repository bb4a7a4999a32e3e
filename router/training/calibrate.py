"""Learns biases and temperatures by gradient descent, where the data are; experts, gates and base stay frozen.

What is differentiable: each module's softmax over the experts that it has chosen, and all that later modules make of
its output. What is not: which k experts are chosen; the choice follows the biases, but no gradient runs through it, so
an expert that is never chosen learns nothing, and a module where k experts or fewer meet learns weights alone.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from protocol.errors import Code, Refused
from router.base.loading import Base
from router.layer.routed_linear import RoutedLinear
from router.pool.calibration import MAX_BIAS, MAX_LOG_TEMPERATURE, Calibration
from router.pool.gate import standardise
from router.pool.group_view import ModuleExperts
from router.pool.pool import ExpertPool


class SoftRouter:
    """One module's experts, weighed by a softmax whose biases and temperature can learn.

    Args:
        module: The experts.
        k: Experts a token.
        bias: [n], of all experts of the calibration, in units of the softmax.
        columns: [...], places in `bias` of the experts of this module, in pool order.
        log_temperature: [1].
    """

    def __init__(self, module: ModuleExperts, k: int, bias: Tensor, columns: Tensor, log_temperature: Tensor) -> None:
        self._parts = [module.part(row) for row in module.rows]
        self._gates, self._k = module.gates, min(k, len(module))
        self._bias, self._columns, self._log_temperature = bias, columns, log_temperature

    def __call__(self, layer: RoutedLinear, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        """Add to y [..., o], what the base makes of u [..., d], what the chosen experts contribute."""
        (u,) = inputs
        tokens, plain = u.reshape(-1, u.shape[-1]), y.reshape(-1, y.shape[-1])
        chosen, weights = self.weigh(tokens)
        # Sorted by expert, so that each runs once, and nothing is summed up expert by expert.
        order = chosen.flatten().argsort(stable=True)
        at, counts = order // chosen.shape[1], torch.bincount(chosen.flatten()).tolist()
        shares = zip(self._parts, torch.split(tokens[at], counts), torch.split(plain[at], counts), strict=False)
        deltas = [part.delta(mine, before, layer.linear) for part, mine, before in shares if len(mine)]
        added = torch.cat(deltas) * weights.flatten()[order, None]
        return plain.index_add(0, at, added.to(y.dtype)).view_as(y)

    def weigh(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Choose for tokens u [t, d]; returns experts, by place in pool order, and weights, both [t, k]."""
        scores = standardise(u.float()) @ self._gates.T / math.sqrt(u.shape[1]) + self._bias[self._columns]
        best, chosen = scores.topk(self._k, dim=1)
        return chosen, torch.softmax(best * torch.exp(-self._log_temperature), dim=1)


@contextmanager
def soft_routing(model: nn.Module, routers: Mapping[str, SoftRouter]) -> Iterator[None]:
    """Let modules, by path, route by what can learn."""
    with ExitStack() as hooks:
        for path, router in routers.items():
            hooks.enter_context(model.get_submodule(path).register_forward_hook(router))
        yield


def calibrate(
    base: Base,
    pool: ExpertPool,
    k: int,
    start: Calibration,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    learning_rate: float,
) -> Calibration:
    """Take one step of Adam a batch.

    Args:
        base: Its linear modules are routed ones.
        pool: The experts.
        k: Experts a token.
        start: Biases and temperatures to begin with; says which experts and modules there are.
        batches: Tokenised examples with labels, each [b, s].
        learning_rate: In units of the softmax, for biases and log temperatures alike.

    Raises:
        Refused: `NOT_FINITE` if a loss is not.
    """
    columns = {digest: at for at, digest in enumerate(start.experts)}
    biases, temperatures, routers = [], [], {}
    for path, row, one in zip(start.modules, start.bias, start.log_temperature, strict=True):
        module = pool.modules.get(path)
        device = base.model.device if module is None else module.gates.device
        biases.append(torch.tensor(row, device=device, requires_grad=True))
        temperatures.append(torch.tensor([one], device=device, requires_grad=True))
        if module is not None:
            mine = torch.tensor([columns[expert.digest] for expert in module.experts], device=device)
            routers[path] = SoftRouter(module, k, biases[-1], mine, temperatures[-1])
    descent = torch.optim.Adam([*biases, *temperatures], lr=learning_rate)
    with soft_routing(base.model, routers):
        for batch in batches:
            loss = base.model(**{name: tensor.to(base.model.device) for name, tensor in batch.items()}).loss
            if not math.isfinite(loss.item()):
                raise Refused(
                    Code.NOT_FINITE, "Calibrating diverged: the loss is not finite.", "Tell the pool's operator."
                )
            descent.zero_grad()
            loss.backward()
            descent.step()
            with torch.no_grad():
                for bias, log_temperature in zip(biases, temperatures, strict=True):
                    bias.clamp_(-MAX_BIAS, MAX_BIAS)
                    log_temperature.clamp_(-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    return start.at(torch.cat([each.detach().cpu() for each in (*biases, *temperatures)]).numpy())
