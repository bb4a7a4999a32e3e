"""NNLS by token: the request's mixture, and beside it what every token says at every module.

Source: this project's laboratory (`tests/lab`). With c the request's shares (`router.methods.features.mixture`), m its
    mass (`router.methods.nnls_request`), and public text's tokens of mean t and covariance S at a module,

    nnls-token   r_z(u) = (u - t)' w_z / ((mean_z - t)' w_z),  w_z = S^-1 (mean_z - t)     Fisher's discriminant
    nnls-gates   r_z(u) = v_z . (u - t) / (3 sqrt(v_z' S v_z)),  v_z PHATGOOSE's gate      needs no token's mean

the score of z is .3 r_z(u) + .7 c_z, and the k best get min(1, m softmax(score / (.2 T))); of an unfamiliar request the
2 k (up to 4) best, at 2 T. Like the request's, the token's term is 1 for what is plainly z's and 0 for public text.
Experts that cannot be told apart get 1 together at most.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from router.layer.batch_rows import BatchRows
from router.layer.choice import Choice, CommonChoice
from router.layer.routed_linear import RoutingPlan
from router.layer.topk import Decision, choose_by_scores, in_pieces, products
from router.layer.topk_single import products_of_one, topk_of_one
from router.methods.base_only import BaseOnly
from router.methods.context import MethodContext
from router.methods.features.background import PublicText
from router.methods.features.mixture import Shares, familiar
from router.methods.nnls_request import found_mass, wider
from router.methods.shared_decision import SharedDecision
from router.pool.expert import Expert
from router.pool.group_view import ModuleExperts, RouteGroup

RIDGE = 0.1
"""Of the tokens' covariance, relative to its mean variance."""
_TOKEN = 0.3
"""The token's part of a score; the rest is the request's."""
_SHARP = 0.2
"""Temperature of the softmax at T = 1, of a familiar request."""
_EVENER = 2.0
"""How many times higher T is for an unfamiliar request."""
_DEVIATIONS = 3.0
"""By how many standard deviations of public text a gate is taken to be sure."""


@dataclass(frozen=True)
class Discriminant:
    """Fisher's discriminant between an expert's tokens and public text's, 1 at its mean."""

    public: PublicText

    def __call__(self, expert: Expert, path: str) -> Tensor | None:
        """Return w_z / ((mean_z - t)' w_z), [d]; None if the contributor does not tell, or tells nothing new."""
        mean = expert.means.get(path)
        if mean is None:
            return None
        spread = self.public.spread(path, "token")
        apart = mean.cpu() - spread.mean
        w = spread.raised(apart.unsqueeze(0), RIDGE, -1)[0]
        length = float(apart.double() @ w.double())
        return (w / length).to(mean.device) if length > 0 else None


@dataclass(frozen=True)
class ScaledGate:
    """A gate in units of its own spread over public text."""

    public: PublicText

    def __call__(self, expert: Expert, path: str) -> Tensor | None:
        """Return v_z / (3 sqrt(v_z' S v_z)), [d]; None where public text does not vary along it."""
        gate = expert.modules[path].gate
        deviation = float(self.public.spread(path, "token").deviation(gate.cpu().unsqueeze(0))[0])
        return gate / (_DEVIATIONS * deviation) if deviation > 0 else None


def by_token(asked: MethodContext, kind: type[Discriminant | ScaledGate]) -> list[RoutingPlan]:
    """Plan each input by its mixture and by what its tokens are compared with; equally familiar ones share a plan.

    Raises:
        Refused: `STATISTICS_MISSING`.
    """
    plans = [RoutingPlan(asked.pool, BaseOnly())] * len(asked.inputs)
    if not asked.pool.experts:
        return plans
    shares, prototype = asked.shares(), kind(asked.seen.mixtures.public)
    some = (shares.shares > 0).any(axis=1)
    known = np.array([familiar(c, shares.alike) for c in shares.shares], dtype=bool)
    more = replace(asked, k=wider(asked.k), temperature=_EVENER * asked.temperature)
    for of, asking in ((some & known, asked), (some & ~known, more)):
        rows = np.flatnonzero(of)
        plan = RoutingPlan(asked.pool, ByToken(asking, Shares(shares.shares[rows], shares.alike), prototype))
        for row in rows:
            plans[row] = plan
    return plans


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a request knows at the modules of one group."""

    group: RouteGroup
    """By the vectors that tokens are compared with."""
    centre: Tensor
    """[d], t."""
    shares: Tensor
    """[b, n], (1 - .3) c by row of the group."""
    alike: Tensor
    """[n], by row of the group."""


class ByToken(SharedDecision):
    """The k experts whom request and token, compared with a prototype, together want most; shares are by row."""

    def __init__(self, asked: MethodContext, shares: Shares, prototype: Discriminant | ScaledGate) -> None:
        super().__init__()
        self._k, self._temperature = asked.k, asked.temperature * _SHARP
        self._shares, self._prototype = shares, prototype
        self._positions = {expert.digest: at for at, expert in enumerate(asked.pool.experts)}
        self._masses = torch.tensor([found_mass(c, shares.alike) for c in shares.shares])
        self._rows = BatchRows(len(shares.shares))
        self._seen: dict[RouteGroup, _Seen] = {}

    def decide(self, group: RouteGroup, u: Tensor) -> Decision:
        """Score every expert for every token of u, shaped as `BatchRows.entries` takes it, [..., d]; keep the best."""
        if group not in self._seen:
            self._seen[group] = self._look(group, u.device)
        seen = self._seen[group]
        rows, slots = len(seen.shares), len(group.counts)
        if rows > 1:
            self._rows.entries(group.store.paths[0], u)
        tokens = u.shape[:-1].numel()
        if tokens == 1 and not u.is_cuda:
            return self._decide_for_one(seen, u)
        of = torch.arange(rows, device=u.device).repeat_interleave(tokens // rows)

        def decide(chunk: Tensor, start: int) -> Decision:
            mine = of[start : start + len(chunk)]
            table = products(seen.group, chunk - seen.centre)[:, slots:].view(len(chunk), -1, slots)
            scores = table.mul_(_TOKEN).add_(seen.shares[mine].unsqueeze(2))
            modules = [ModuleExperts(group, slot) for slot in range(slots)]
            found = [
                choose_by_scores(module, scores[:, :, module.slot], self._k, self._temperature) if len(module) else None
                for module in modules
            ]
            return [choice and self._capped(choice, mine, seen) for choice in found]

        return in_pieces(u, group.length * slots, decide)

    def _look(self, group: RouteGroup, device: torch.device) -> _Seen:
        positions = [self._positions.get(expert.digest, -1) for expert in group.store.experts[: group.length]]
        # Rows that the request does not see have no share, and are passed over anyhow.
        shares = np.pad(self._shares.shares, ((0, 0), (0, 1)))[:, positions] * (1 - _TOKEN)
        alike = np.pad(self._shares.alike, (0, 1), constant_values=-1)[positions]
        # A group names siblings that the base may lack.
        path = next(path for path, count in zip(group.store.paths, group.counts, strict=True) if count)
        centre = self._prototype.public.spread(path, "token").mean
        self._masses = self._masses.to(device)
        return _Seen(
            group.by(self._prototype),
            centre.to(device),
            torch.tensor(shares, dtype=torch.float32, device=device),
            torch.tensor(alike, device=device),
        )

    def _decide_for_one(self, seen: _Seen, u: Tensor) -> Decision:
        scores, _ = products_of_one(seen.group, u - seen.centre)
        scores *= _TOKEN
        slots = len(seen.group.counts)
        scores[slots:].reshape(-1, slots)[:] += seen.shares.numpy().T
        mass, alike = self._masses.item(), seen.alike.numpy()
        found = topk_of_one(seen.group, scores, self._k, [1 / self._temperature] * slots)
        return [choice and _capped_one(choice, mass, alike[choice.experts].tolist()) for choice in found]

    def _capped(self, choice: Choice, of: Tensor, seen: _Seen) -> Choice:
        """Multiply weights [t, k] by the mass of each token's row, [t]; alike or alone, nobody gets above 1."""
        weights = choice.weights * self._masses[of].unsqueeze(1).to(choice.weights.dtype)
        labels = seen.alike[choice.experts]
        together = ((labels.unsqueeze(2) == labels.unsqueeze(1)) * weights.unsqueeze(1)).sum(2)
        return Choice(choice.experts, weights / together.clamp(min=1))


def _capped_one(choice: CommonChoice, mass: float, labels: list[int]) -> CommonChoice:
    """Do as `ByToken._capped` for one token's experts, of which equals have equal labels."""
    together: dict[int, float] = defaultdict(float)
    for label, weight in zip(labels, choice.weights, strict=True):
        together[label] += mass * weight
    weights = zip(labels, choice.weights, strict=True)
    return CommonChoice(choice.experts, [mass * weight / max(together[label], 1.0) for label, weight in weights])
