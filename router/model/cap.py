"""Fits a release's cap with the base: what every expert would be given of public text, and who takes too much of it."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from router.base.batching import Prompt, TokenPair
from router.methods import BY_ENDING, BY_MIXTURE, find_method
from router.methods.context import Features
from router.methods.features.activations import Reader
from router.methods.features.mixture import Shares
from router.model.capture import find_sets, fit_biases, likeness
from router.pool.calibration import MAX_BIAS, METHOD, REQUEST, Calibration
from router.pool.gate import standardise
from router.pool.group_view import ModuleExperts
from router.pool.pool import ExpertPool

TOKENS = 2048
"""Of the text, at each module: a pool of 500 experts and 224 modules holds 0.9 GB of scores meanwhile."""


class Cap(NamedTuple):
    """What keeps everybody to a share."""

    biases: Calibration
    """Of those who would take too much, and of nobody else."""
    excess: float
    """The largest share over what it may be, with these biases; more than 1 only where nothing helped."""


class Probe(NamedTuple):
    """Public text, as tokens."""

    pairs: Sequence[TokenPair]
    """Inputs and what is to be answered."""
    tick: Callable[[], None] = lambda: None
    """Called between two steps; what it raises ends the fit."""


class Allowed(NamedTuple):
    """How much anybody may take."""

    most: float
    """In fair shares."""
    newcomers: Collection[str] = ()
    """Contributors who count as one."""


def fit_cap(features: Features, pool: ExpertPool, method: str, k: int, allowed: Allowed, probe: Probe) -> Cap:
    """Find the biases with which no contributor, and no experts that choose alike, take too much of a probe.

    The base reads the text alone, as if no expert changed what later modules are given. Methods by mixtures are capped
    by a request's shares, whatever single tokens say to them; other methods than these and the gates' not at all.

    Args:
        features: What inputs are read with.
        pool: The experts, in the order in which they came, with what else a release adds to their scores.
        method: How the release routes.
        k: Experts a token.
        allowed: How much anybody may take.
        probe: The text.
    """
    owners = [expert.contributor for expert in pool.experts]
    found = _Found([expert.digest for expert in pool.experts])
    if len(set(owners)) <= allowed.most:  # everybody may take everything
        return found.cap()
    if method == METHOD:
        scores = gate_scores(features.mixtures.reader, pool, probe)
        alike = _by_scores(pool, scores)
        for path, table in scores.items():
            probe.tick()
            columns = _columns(pool, pool.modules[path])
            sets = find_sets(alike[columns][:, columns], [owners[z] for z in columns], allowed.newcomers)
            temperature = _temperature(pool, path)
            fitted = fit_biases(table / temperature, sets, k, allowed.most)
            found.add(path, columns, fitted.bias * temperature, fitted.excess)
    elif find_method(method) in BY_MIXTURE:
        solve = features.mixtures.latest if method in BY_ENDING else features.mixtures.shares
        mixed = solve(pool, [Prompt("", pair.input) for pair in probe.pairs])
        told = torch.from_numpy(mixed.shares[(mixed.shares > 0).any(axis=1)])
        sets = find_sets(_by_means(mixed), owners, allowed.newcomers)
        if len(told):
            fitted = fit_biases(told.log(), sets, len(owners), allowed.most)
            found.add(REQUEST, list(range(len(owners))), fitted.bias, fitted.excess)
    return found.cap()


def find_alike(features: Features, pool: ExpertPool, method: str, probe: Probe) -> Tensor:
    """Say who chooses like whom, [n, n] in pool order: from `router.model.capture.ALIKE` on two experts count as one.

    By methods that a cap knows nothing of, nobody is like anybody.
    """
    if method == METHOD:
        return _by_scores(pool, gate_scores(features.mixtures.reader, pool, probe))
    if find_method(method) in BY_MIXTURE:
        return _by_means(features.mixtures.shares(pool, []))
    return torch.eye(len(pool.experts))


def gate_scores(reader: Reader, pool: ExpertPool, probe: Probe) -> dict[str, Tensor]:
    """Score some tokens of a text by every gate, [t, n] by path, in pool order, with a calibration's biases."""
    causal = reader.base.architecture == "decoder-only"
    sizes = {
        True: sum(len(pair.input) + (len(pair.target) if causal else 0) for pair in probe.pairs),
        False: sum(len(pair.target) for pair in probe.pairs),
    }
    seen: dict[str, list[Tensor]] = {path: [] for path in pool.modules}
    passed = dict.fromkeys(seen, 0)

    def see(path: str, u: Tensor, mask: Tensor) -> None:
        if path not in seen:
            return
        probe.tick()
        tokens, of = u[mask], max(sizes[reader.of_prompt(path)], 1)
        # Every so many, evenly: what a module is given comes in the same order at every module.
        places = torch.arange(passed[path], passed[path] + len(tokens), device=u.device)
        passed[path] += len(tokens)
        kept = tokens[places * TOKENS // of > (places - 1) * TOKENS // of] if of > TOKENS else tokens
        seen[path].append((standardise(kept.float()) @ pool.modules[path].gates.T / math.sqrt(u.shape[-1])).cpu())

    if causal:
        reader.look([pair.input + pair.target for pair in probe.pairs], see)
    else:
        # The decoder reads what it has written so far, never the last token of it.
        reader.look([pair.input for pair in probe.pairs], see, [pair.target[:-1] for pair in probe.pairs])
    biases = pool.calibration
    tables = {path: torch.cat(parts) for path, parts in seen.items() if parts}
    if biases is None:
        return tables
    return {
        path: table + torch.from_numpy(biases.over([e.digest for e in pool.modules[path].experts], [path]).bias)
        for path, table in tables.items()
    }


def _temperature(pool: ExpertPool, path: str) -> float:
    return math.exp(pool.calibration.over([], [path]).log_temperature[0]) if pool.calibration else 1.0


def _columns(pool: ExpertPool, module: ModuleExperts) -> list[int]:
    at = {expert.digest: place for place, expert in enumerate(pool.experts)}
    return [at[expert.digest] for expert in module.experts]


def _by_means(mixed: Shares) -> Tensor:
    """Experts that a mixture cannot tell apart, [n, n]; 1 or 0."""
    labels = torch.from_numpy(mixed.alike)
    return (labels[:, None] == labels).double()


def _by_scores(pool: ExpertPool, scores: dict[str, Tensor]) -> Tensor:
    """Average correlations over the modules that two experts share, [n, n]; 0 where they share none."""
    n = len(pool.experts)
    total, shared = torch.zeros(n, n), torch.zeros(n, n)
    for path, table in scores.items():
        columns = torch.tensor(_columns(pool, pool.modules[path]))
        total[columns[:, None], columns] += likeness(table)
        shared[columns[:, None], columns] += 1
    return total / shared.clamp(min=1)


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
