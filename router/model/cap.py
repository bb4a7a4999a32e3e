"""Fits a release's cap with the base: what every expert would be given of public text, and who takes too much of it."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protocol.spec import Routing
from router.base.batching import Prompt
from router.methods import BY_ENDING, BY_MIXTURE, find_method
from router.methods.context import Features
from router.methods.features.mixture import Shares
from router.model.capture import Sets, find_sets, fit_biases
from router.model.score_tables import Probe, Scored, ScoreTables
from router.pool.calibration import MAX_BIAS, METHOD, REQUEST, Calibration
from router.pool.pool import ExpertPool


class Cap(NamedTuple):
    """What keeps everybody to a share."""

    biases: Calibration
    """Of those who would take too much, and of nobody else."""
    excess: float
    """The largest share over what it may be, with these biases; more than 1 only where nothing helped."""


class Allowed(NamedTuple):
    """How much anybody may take."""

    most: float
    """In fair shares."""
    newcomers: Collection[str] = ()
    """Contributors who count as one."""


def fit_cap(
    features: Features, tables: ScoreTables, pool: ExpertPool, settings: Routing, allowed: Allowed, probe: Probe
) -> Cap:
    """Find the biases with which no contributor, and no experts that choose alike, take too much of a probe.

    The base reads the text alone, as if no expert changed what later modules are given. Methods by mixtures are capped
    by a request's shares, whatever single tokens say to them; other methods than these and the gates' not at all.

    Args:
        features: What inputs are read with.
        tables: What gates were found to say of the probe before.
        pool: The experts, in the order in which they came, with what else a release adds to their scores.
        settings: How the release routes.
        allowed: How much anybody may take.
        probe: The text.
    """
    owners = [expert.contributor for expert in pool.experts]
    found = _Found([expert.digest for expert in pool.experts])
    if len(set(owners)) <= allowed.most:  # everybody may take everything
        return found.cap()
    method = settings.method
    if method == METHOD:
        _fit_gates(found, tables.look(pool, probe), pool, settings.k, allowed, probe.tick)
    elif find_method(method) in BY_MIXTURE:
        solve = features.mixtures.latest if method in BY_ENDING else features.mixtures.shares
        mixed = solve(pool, [Prompt("", pair.input) for pair in probe.pairs])
        told = torch.from_numpy(mixed.shares[(mixed.shares > 0).any(axis=1)])
        sets = find_sets(_by_means(mixed), owners, allowed.newcomers)
        if len(told):
            fitted = fit_biases(told.log(), sets, len(owners), allowed.most)
            found.add(REQUEST, list(range(len(owners))), fitted.bias, fitted.excess)
    return found.cap()


def _fit_gates(
    found: "_Found", scored: Scored, pool: ExpertPool, k: int, allowed: Allowed, tick: Callable[[], None]
) -> None:
    """Fit biases at every module, by the scores of gates."""
    owners = [expert.contributor for expert in pool.experts]
    known: dict[tuple[int, ...], Sets] = {}
    for path in scored.paths:
        tick()
        columns = scored.columns(path)
        sets = known.get(tuple(columns))
        if sets is None:
            alike = scored.alike[columns][:, columns]
            sets = known[tuple(columns)] = find_sets(alike, [owners[z] for z in columns], allowed.newcomers)
        if pool.calibration is None:
            fitted = fit_biases(scored.leaders(path, k), sets, k, allowed.most)
            found.add(path, columns, fitted.bias, fitted.excess)
            continue
        learnt = pool.calibration.over([pool.experts[z].digest for z in columns], [path])
        temperature = math.exp(learnt.log_temperature[0])
        scores = (scored.table(path) + torch.from_numpy(learnt.bias)) / temperature
        fitted = fit_biases(scores, sets, k, allowed.most)
        found.add(path, columns, fitted.bias * temperature, fitted.excess)


def find_alike(features: Features, tables: ScoreTables, pool: ExpertPool, method: str, probe: Probe) -> Tensor:
    """Say who chooses like whom, [n, n] in pool order: from `router.model.capture.ALIKE` on two experts count as one.

    By methods that a cap knows nothing of, nobody is like anybody.
    """
    if method == METHOD:
        return tables.look(pool, probe).alike
    if find_method(method) in BY_MIXTURE:
        return _by_means(features.mixtures.shares(pool, []))
    return torch.eye(len(pool.experts))


def _by_means(mixed: Shares) -> Tensor:
    """Experts that a mixture cannot tell apart, [n, n]; 1 or 0."""
    labels = torch.from_numpy(mixed.alike)
    return (labels[:, None] == labels).double()


class _Found:
    """Gathers what was fitted, module by module."""

    def __init__(self, digests: Sequence[str]) -> None:
        self._digests, self._biases, self._excess = digests, dict[str, Tensor](), 0.0

    def add(self, path: str, columns: Sequence[int], bias: Tensor, excess: float) -> None:
        self._excess = max(self._excess, excess)
        if bool((bias < 0).any()):
            self._biases[path] = torch.zeros(len(self._digests))
            self._biases[path][columns] = bias.clamp(min=-MAX_BIAS).float()

    def cap(self) -> Cap:
        paths = sorted(self._biases)
        if not paths:
            return Cap(Calibration.zeros([], []), self._excess)
        table = torch.stack([self._biases[path] for path in paths])
        lowered = torch.nonzero((table < 0).any(0)).flatten().tolist()
        zeros = Calibration.zeros([self._digests[z] for z in lowered], paths)
        return Cap(zeros.at(np.append(table[:, lowered].flatten().numpy(), zeros.log_temperature)), self._excess)
