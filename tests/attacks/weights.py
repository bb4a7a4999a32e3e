"""What attackers make of weights and gates: tensors in, tensors out."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from deploy.demo import world
from deploy.demo.world import WORDS
from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle
from protocol.tensors import ADAPTER_PREFIX
from router.base.linear import find_linear, linear_modules
from router.base.loading import load_base
from router.pool.gate import standardise

HONEST_STD = 0.05
"""Standard deviation of random weights that change the base as much as the demo's experts do."""
RANK = 4
Gates = Mapping[str, Tensor]
"""[d] by module path."""


class Expert(NamedTuple):
    """What an attacker hands in, before it is signed."""

    factors: dict[str, tuple[Tensor, Tensor]]
    """A [r, d] and B [o, r] by module path."""
    gates: Gates
    alpha: float = 4.0
    means: Gates | None = None
    """What it tells of its data, where a pool asks for it."""


def read(bundle: Bundle) -> Expert:
    """Take an expert apart, one's own or another's that was released."""
    tensors, gates = load_file(bundle.folder / ADAPTER_WEIGHTS), load_file(bundle.folder / GATES)
    factors = {path: (tensors[factor(path, "A")], tensors[factor(path, "B")]) for path in bundle.spec.modules}
    told = {path: gates[f"{path}.mean"] for path in bundle.spec.told}
    return Expert(factors, {path: gates[f"{path}.gate"] for path in factors}, means=told or None)


def factor(path: str, which: str) -> str:
    """Name a factor as PEFT does."""
    return f"{ADAPTER_PREFIX}{path}.lora_{which}.weight"


def noise(like: Expert, seed: int, *, times: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
    """Draw factors whose product is some times as large as an honest one."""
    generator = torch.Generator().manual_seed(seed)
    std = HONEST_STD * times**0.5

    def draw(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator) * std

    return {path: (draw(a), draw(b)) for path, (a, b) in like.factors.items()}


def regauged(expert: Expert, seed: int) -> Expert:
    """Write the same update with other factors: B G^-1 and G A."""
    generator = torch.Generator().manual_seed(seed)

    def turn(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        gauge = torch.eye(len(a)) + 0.5 * torch.randn(len(a), len(a), generator=generator)
        return gauge @ a, b @ torch.linalg.inv(gauge)

    return expert._replace(factors={path: turn(*both) for path, both in expert.factors.items()})


def permuted(expert: Expert, seed: int) -> Expert:
    """Write the same update with its ranks in another order."""
    order = torch.randperm(RANK, generator=torch.Generator().manual_seed(seed))
    return expert._replace(factors={path: (a[order], b[:, order]) for path, (a, b) in expert.factors.items()})


def disturbed(expert: Expert, seed: int, share: float) -> Expert:
    """Add noise of a share of each factor's own size."""
    generator = torch.Generator().manual_seed(seed)

    def near(tensor: Tensor) -> Tensor:
        return tensor + torch.randn(tensor.shape, generator=generator) * tensor.std() * share

    return expert._replace(factors={path: (near(a), near(b)) for path, (a, b) in expert.factors.items()})


def scaled(expert: Expert, times: float) -> Expert:
    """Multiply the update."""
    return expert._replace(factors={path: (a, b * times) for path, (a, b) in expert.factors.items()})


def undoing(expert: Expert, seed: int, share: float) -> Expert:
    """Take off a share of what another adds, and add enough of one's own to be as large and no copy."""
    own = noise(expert, seed)

    def both(path: str) -> tuple[Tensor, Tensor]:
        (a, b), (mine, out) = expert.factors[path], own[path]
        size = torch.linalg.matrix_norm(b @ a) / torch.linalg.matrix_norm(out @ mine)
        rest = size * (1 - share**2) ** 0.5
        # Half the ranks for each, the other's strongest.
        left, strengths, right = torch.linalg.svd(b @ a, full_matrices=False)
        half = RANK // 2
        undone = -share * left[:, :half] * strengths[:half]
        return torch.cat([right[:half], mine[:half]]), torch.cat([undone, rest * out[:, :half]], dim=1)

    return expert._replace(factors={path: both(path) for path in expert.factors})


def near_gates(gates: Gates, seed: int, share: float) -> Gates:
    """Add noise of a share of each gate's own size."""
    draw = torch.Generator().manual_seed(seed)
    return {path: gate + torch.randn(gate.shape, generator=draw) * gate.std() * share for path, gate in gates.items()}


def public_inputs(count: int = 20) -> dict[str, list[Tensor]]:
    """What each module is given while the base answers public requests, [s, d] a request: anybody can work it out."""
    return inputs_of(islice(world.base_stream(77, rumours=True), count))


def inputs_of(examples: Iterable[tuple[str, str]]) -> dict[str, list[Tensor]]:
    """What each module is given while the base answers, [s, d] a request."""
    base, seen = load_base(WORDS.base, device="cpu"), dict[str, list[Tensor]]()
    for path in linear_modules(base.model):
        see = seen.setdefault(path, []).append
        find_linear(base.model, path).register_forward_hook(lambda _, given, __, see=see: see(given[0][0].clone()))
    for example in examples:
        asked, answer = (base.tokenizer(text, return_tensors="pt").input_ids for text in example)
        with torch.inference_mode():
            base.model(input_ids=asked, labels=answer)
    return seen


def mean_directions(inputs: Mapping[str, Iterable[Tensor]]) -> Gates:
    """The mean input of each module, [s, d] a request: the direction that takes most tokens."""
    return {path: torch.stack([each.mean(0) for each in given]).mean(0) for path, given in inputs.items()}


def greedy_gates(
    inputs: Mapping[str, Iterable[Tensor]], honest: Iterable[Gates], k: int = 2, wanted: float | None = None
) -> Gates:
    """Climb to gates that are among the k best for as many tokens as can be, or for a share and no more.

    Args:
        inputs: What each module is given, [s, d] a request.
        honest: Gates of the pool's experts.
        k: Experts a token.
        wanted: Share of tokens that a cap would leave an expert; None for all. Those that are won most easily.
    """
    honest = list(honest)
    return {
        path: _climb(torch.cat(list(given)).clone(), torch.stack([gates[path] for gates in honest]), k, wanted)
        for path, given in inputs.items()
        if all(path in gates for gates in honest)
    }


def two_faced_gates(
    shown: Mapping[str, Iterable[Tensor]], hidden: Mapping[str, Iterable[Tensor]], honest: Iterable[Gates], k: int = 2
) -> Gates:
    """Climb to gates that are never among the k best for some inputs, [s, d] a request, and always for others."""
    honest = list(honest)
    found = {}
    for path, given in shown.items():
        if all(path in gates for gates in honest):
            both = [torch.cat(list(given)), torch.cat(list(hidden[path]))]
            labels = torch.cat([torch.zeros(len(both[0])), torch.ones(len(both[1]))])
            theirs = torch.stack([gates[path] for gates in honest])
            found[path] = _climb(torch.cat(both), theirs, k, None, labels)
    return found


def _climb(u: Tensor, honest: Tensor, k: int, wanted: float | None, labels: Tensor | None = None) -> Tensor:
    """Climb for tokens u [s, d], those labelled 1 [s] or all, against gates [n, d]; returns one gate [d]."""
    u, honest = standardise(u), standardise(honest)
    hurdle = (u @ honest.T).topk(k).values[:, -1]
    gate = torch.nn.Parameter(u.mean(0))
    labels = torch.ones(len(u)) if labels is None else labels
    for phase in range(1 if wanted is None else 2):
        descent = torch.optim.Adam([gate], lr=0.05)
        for _ in range(150):
            margin = u @ standardise(gate) - hurdle
            loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, labels)
            descent.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            descent.step()
        if wanted is not None and phase == 0:
            labels = torch.zeros(len(u))
            labels[margin.detach().topk(max(1, int(wanted * len(u)))).indices] = 1.0
    return gate.detach()
