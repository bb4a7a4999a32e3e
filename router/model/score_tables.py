"""What gates say of the tokens of one text, kept: an expert that joins costs its own scores, not those of a pool.

Of each expert its scores are kept, [t] at each module, and how it is correlated with every other one; of each token
who is best, so that a choice among hundreds is one among a few (`router.model.capture.Leaders`). All of it is what the
base and the gates make of the text: it holds for as long as the text is the same, whatever else the pool holds.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from router.base.batching import TokenPair
from router.methods.features.activations import Reader
from router.model.capture import LISTED, Leaders, listed
from router.pool.gate import standardise
from router.pool.pool import ExpertPool

TOKENS = 2048
"""Of the text, at each module: a pool of 500 experts and 224 modules keeps 0.9 GB of scores."""
_FEW = 8
"""Experts that may come or go before leaders are found anew."""
_SPARE = 32
"""Experts that may be gone before what is kept of them is dropped."""


class Probe(NamedTuple):
    """Public text, as tokens."""

    pairs: Sequence[TokenPair]
    """Inputs and what is to be answered."""
    tick: Callable[[], None] = lambda: None
    """Called between two steps; what it raises ends the look."""


@dataclass
class _Path:
    """What is kept of one module; an expert has the same row everywhere, of zeros where it leaves a module alone."""

    scores: Tensor
    """[rows, t]; there may be more rows than experts."""
    means: Tensor
    """[rows], over tokens."""
    lengths: Tensor
    """[rows], of what scores differ from their means by."""
    touched: Tensor
    """[rows], 1 where an expert has a gate, else 0."""
    leaders: Leaders | None = None
    """Who is best; experts by row."""
    seen: frozenset[int] = frozenset()
    """Rows of whom."""
    lost: int = 0
    """How many have gone since all were looked through."""

    def at(self, rows: Tensor) -> "_Path":
        """Keep some rows."""
        return _Path(self.scores[rows], self.means[rows], self.lengths[rows], self.touched[rows])

    def write(self, rows: Tensor, scores: Tensor) -> None:
        """Write down what some experts score [t, m], in rows [m]."""
        most = int(rows.max()) + 1
        if len(self.scores) < most:
            for name in ("scores", "means", "lengths", "touched"):
                kept = getattr(self, name)
                wider = kept.new_zeros(most + most // 4 + _FEW, *kept.shape[1:])
                wider[: len(kept)] = kept
                setattr(self, name, wider)
        self.scores[rows], self.means[rows] = scores.T, scores.mean(0)
        self.lengths[rows] = torch.linalg.vector_norm(scores - scores.mean(0), dim=0)
        self.touched[rows] = 1.0


class ScoreTables:
    """Scores of one text by every gate that was seen.

    Args:
        reader: Has the base read it.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._forget(())

    def look(self, pool: ExpertPool, probe: Probe) -> "Scored":
        """Score a text by the gates of a pool's experts, as if no expert changed what later modules are given.

        Args:
            pool: The experts; what a release adds to their scores is left out.
            probe: The text; with another one than before all is worked out anew.
        """
        text = TOKENS, *((tuple(pair.input), tuple(pair.target)) for pair in probe.pairs)
        if text != self._text:
            self._forget(text)
        held = {expert.digest for expert in pool.experts}
        if len(self._rows.keys() - held) > _SPARE + len(held) // 4:
            self._drop(held)
        if new := [expert.digest for expert in pool.experts if expert.digest not in self._rows]:
            try:
                self._add(pool, new, probe)
            except BaseException:  # half of it is written down
                self._forget(text)
                raise
        return Scored(pool, self._rows, self._paths, self._likeness)

    def _forget(self, text: tuple[object, ...]) -> None:
        self._text = text
        self._rows: dict[str, int] = {}
        self._paths: dict[str, _Path] = {}
        self._likeness = torch.zeros(0, 0)

    def _drop(self, held: Collection[str]) -> None:
        """Keep what is known of some experts alone."""
        kept = [digest for digest in self._rows if digest in held]
        rows = torch.tensor([self._rows[digest] for digest in kept], dtype=torch.long)
        self._rows = {digest: row for row, digest in enumerate(kept)}
        self._likeness = self._likeness[rows][:, rows]
        self._paths = {path: known.at(rows) for path, known in self._paths.items() if known.touched[rows].any()}

    def _add(self, pool: ExpertPool, new: Sequence[str], probe: Probe) -> None:
        gates, rows = dict[str, Tensor](), dict[str, Tensor]()
        before = len(self._rows)
        numbers = {digest: before + at for at, digest in enumerate(new)}
        for path, module in pool.modules.items():
            if there := [row for digest, row in module.by_digest.items() if digest in numbers]:
                gates[path] = torch.stack([module.part(row).gate for row in there])
                rows[path] = torch.tensor([numbers[module.expert(row).digest] for row in there])
        total, shared = torch.zeros(2, before + len(new), len(new))
        for path, scores in gate_scores(self._reader, gates, probe).items():
            probe.tick()
            if path not in self._paths:
                self._paths[path] = _Path(torch.zeros(0, len(scores)), *torch.zeros(3, 0))
            known = self._paths[path]
            known.write(rows[path], scores)
            found = _correlated(known, scores, rows[path])
            total[: len(found), rows[path] - before] += found
            shared[: len(found), rows[path] - before] += known.touched[: len(found), None]
        self._rows |= numbers
        self._likeness = _bordered(self._likeness, total / shared.clamp(min=1))


class Scored:
    """What the experts of one pool score.

    Args:
        pool: The experts.
        rows: Where each stands in what is kept, by digest.
        paths: What is kept, by module.
        likeness: [rows, rows], correlations.
    """

    def __init__(self, pool: ExpertPool, rows: Mapping[str, int], paths: Mapping[str, _Path], likeness: Tensor) -> None:
        self._pool, self._rows, self._paths = pool, rows, paths
        mine = [rows[expert.digest] for expert in pool.experts]
        self._places = {row: place for place, row in enumerate(mine)}
        self.alike = likeness[mine][:, mine]
        """Correlations of scores over tokens, averaged over the modules that two share, [n, n] in pool order."""
        self.paths = [path for path in pool.modules if path in paths]
        """Modules that are given something."""

    def columns(self, path: str) -> list[int]:
        """Name who scores at a module, by places in the pool, in pool order."""
        return [self._places[row] for row in self._at(path)]

    def table(self, path: str) -> Tensor:
        """What everybody scores at a module, [t, n] by its columns."""
        return self._paths[path].scores[self._at(path)].T.contiguous()

    def leaders(self, path: str, k: int) -> Leaders:
        """Who is best at a module, by its columns; found among few where few came or went since the last look."""
        known, rows = self._paths[path], self._at(path)
        new, gone = [row for row in rows if row not in known.seen], known.seen.difference(rows)
        known.lost += len(gone)
        length = len(known.leaders.listed) if known.leaders else 0
        if max(len(new), known.lost) > _FEW or not LISTED * k <= length <= 2 * LISTED * k or known.leaders is None:
            best, experts, rest = listed(self.table(path), LISTED * k)
            known.leaders, known.lost = Leaders(best, torch.tensor(rows)[experts], rest), 0
        else:
            for row in gone:
                known.leaders = known.leaders.without(row)
            for row in new:
                known.leaders = known.leaders.joined(row, known.scores[row])
        known.seen = frozenset(rows)
        columns = torch.zeros(len(known.scores), dtype=torch.long)
        columns[rows] = torch.arange(len(rows))
        kept = known.leaders
        return Leaders(kept.listed, columns[kept.experts], kept.rest, lambda: self.table(path))

    def _at(self, path: str) -> list[int]:
        return [self._rows[digest] for digest in self._pool.modules[path].by_digest]


def gate_scores(reader: Reader, gates: Mapping[str, Tensor], probe: Probe) -> dict[str, Tensor]:
    """Score some tokens of a text by gates [n, d], standardised, by path; gives [t, n] by path."""
    causal = reader.base.architecture == "decoder-only"
    sizes = {
        True: sum(len(pair.input) + (len(pair.target) if causal else 0) for pair in probe.pairs),
        False: sum(len(pair.target) for pair in probe.pairs),
    }
    seen: dict[str, list[Tensor]] = {path: [] for path in gates}
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
        seen[path].append((standardise(kept.float()) @ gates[path].T / math.sqrt(u.shape[-1])).cpu())

    if causal:
        reader.look([pair.input + pair.target for pair in probe.pairs], see)
    else:
        # The decoder reads what it has written so far, never the last token of it.
        reader.look([pair.input for pair in probe.pairs], see, [pair.target[:-1] for pair in probe.pairs])
    return {path: torch.cat(parts) for path, parts in seen.items() if parts}


def _correlated(known: _Path, scores: Tensor, rows: Tensor) -> Tensor:
    """Correlate what some experts score [t, m] in rows [m] with what everybody does, [rows, m]; 0 for no variation."""
    tiny = torch.finfo(scores.dtype).tiny
    unit = (scores - known.means[rows]) / known.lengths[rows].clamp(min=tiny)
    used = int(rows.max()) + 1
    # Nobody's mean counts, but for what rounding leaves of a unit's.
    products = known.scores[:used] @ unit - known.means[:used, None] * unit.sum(0)
    lengths = known.lengths[:used, None]
    return torch.where(lengths > 0, products / lengths.clamp(min=tiny), 0).clamp(-1, 1)


def _bordered(square: Tensor, columns: Tensor) -> Tensor:
    """Put columns [n + m, m] beside a symmetric square [n, n], and their like below it."""
    n = len(square)
    whole = columns.new_zeros(len(columns), len(columns))
    whole[:n, :n], whole[:, n:] = square, columns
    whole[n:, :n] = columns[:n].T
    return whole
