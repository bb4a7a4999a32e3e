"""Experts in memory, arranged by module, growing while requests run.

A pool is a value: adding or removing an expert makes a new generation, a cheap view of pages that both
generations share. A request keeps the generation that it began with, so a swap in the middle of it changes
nothing. A generation is a length and a short list of rows to pass over: experts that were removed, and
experts that only another branch of the pool's history knows.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import torch

from protocol.adapters import Module
from protocol.errors import Code, Refused
from router.base.module_paths import shared_input
from router.pool.calibration import Calibration
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.group_store import GroupStore
from router.pool.group_view import ModuleExperts, RouteGroup
from router.pool.pages import GATE_BYTES, FactorPages, GatePages

_SPARE = 8
"""Rows that may be gone before a pool moves to new pages."""
_Key = tuple[tuple[str, ...], int]
"""Modules whose names promise one input, and its width: an input of another width is another one."""
_Groups = Mapping[_Key, RouteGroup]


class _Store:
    """What all generations of a pool share; only grows."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.experts: list[Expert] = []
        self.rows: dict[str, list[int]] = {}
        """Rows by digest; several if an expert left and came back."""
        self.groups: dict[_Key, GroupStore] = {}


@dataclass(frozen=True, eq=False)
class ExpertPool:
    """Every expert of a release, as one generation of requests sees it."""

    _store: _Store = field(default_factory=_Store)
    _length: int = 0
    _hidden: frozenset[int] = frozenset()
    _groups: _Groups = field(default_factory=dict)
    modules: Mapping[str, ModuleExperts] = field(default_factory=lambda: MappingProxyType({}))
    """Experts by module path; a module that no expert touches is absent."""
    calibration: Calibration | None = None
    """What is added to the scores of gates; an expert that came later has bias 0."""

    @cached_property
    def experts(self) -> tuple[Expert, ...]:
        """Experts in pool order."""
        known = self._store.experts
        return tuple(known[row] for row in range(self._length) if row not in self._hidden)

    def add(self, expert: Expert) -> "ExpertPool":
        """Append an expert; work is proportional to that expert, not to the pool.

        Its tensors are copied into the pool's pages, so the caller's may go.

        Raises:
            Refused: `DUPLICATE_OF` if the pool holds the bundle already.
        """
        store = self._store
        if self._crowded:
            return _rebuilt(self.experts).calibrated(self.calibration).add(expert)
        # Pages outlive the forward pass in which they might be made: they must not be inference tensors.
        with store.lock, torch.inference_mode(mode=False), torch.no_grad():
            if self._row(expert.digest) is not None:
                raise Refused(
                    Code.DUPLICATE_OF, f"Expert {expert.full_name} is in the pool already.", "Remove it first."
                )
            placed: dict[str, ExpertModule] = {}
            pooled = replace(expert, modules=MappingProxyType(placed))
            groups, touched = dict(self._groups), _by_group(expert.modules)
            # Everything that can fail comes first: a row is written at all modules or at none.
            for key, parts in touched.items():
                if key not in store.groups:
                    store.groups[key] = GroupStore(key[0], next(iter(parts.values())))
                store.groups[key].reserve(parts)
            for key, parts in touched.items():
                group = store.groups[key]
                placed |= group.append(pooled, parts)
                groups[key] = (groups.get(key) or RouteGroup(group, (0,) * len(group.paths))).grown()
            row = len(store.experts)
            store.experts.append(pooled)
            store.rows.setdefault(expert.digest, []).append(row)
            for device in {part.gate.device for part in placed.values() if part.gate.is_cuda}:
                # Whoever sees the new generation may read the pages, from whatever stream.
                torch.cuda.current_stream(device).synchronize()
        # Rows in between were appended by another branch, such as a candidate that failed its probe.
        hidden = self._hidden.union(range(self._length, row))
        return replace(self, _length=row + 1, _hidden=hidden, _groups=groups, modules=_modules(groups))

    @property
    def _crowded(self) -> bool:
        """Whether so many rows are gone that the next addition moves what is kept to new pages."""
        known = len(self._store.experts)
        unseen = known - (self._length - len(self._hidden))
        return unseen > _SPARE and 2 * unseen > known

    def moved_bytes(self, device: torch.device) -> int:
        """What the next addition copies to new pages on a device, in bytes."""
        kept = self.experts if self._crowded else ()
        return sum(
            (part.a.numel() + part.b.numel()) * part.a.itemsize + part.gate.numel() * GATE_BYTES
            for expert in kept
            for part in expert.modules.values()
            if part.gate.device == device
        )

    def opened_bytes(self, experts: Sequence[Mapping[str, Module]], dtype: torch.dtype) -> int:
        """Estimate what pages that more experts, given by path, would open take in bytes; a GPU gives it at once."""
        stores = {module.path: (store, module) for store in self._store.groups.values() for module in store.modules}
        by_path: dict[str, list[Module]] = {}
        for modules in experts:
            for path, module in modules.items():
                by_path.setdefault(path, []).append(module)
        total = 0
        for path, several in by_path.items():
            d, o = several[0].d_in, several[0].d_out
            store, mine = stores.get(path, (None, None))
            gates = store.gates if store else GatePages(1, d, torch.device("cpu"))
            factors = (mine and mine.factors) or FactorPages(d, o, torch.empty(0, dtype=dtype))
            sorts = Counter((module.rank, getattr(module, "activation", None)) for module in several)
            total += gates.opened_bytes(len(several)) // gates.slots
            total += sum(factors.opened_bytes(*sort, count) for sort, count in sorts.items())
        return total

    def remove(self, digest: str) -> "ExpertPool":
        """Leave an expert out of this and later generations; equal to never having added it.

        Its memory comes back with the first addition that finds more rows gone than kept: what is kept then
        moves to new pages, and the old pages go with the last generation that reads them, held for requests or not.
        """
        return self if self._row(digest) is None else self._without({digest})

    def _without(self, digests: Collection[str]) -> "ExpertPool":
        gone = (row for row in range(self._length) if self._store.experts[row].digest in digests)
        groups = {key: group.without(digests) for key, group in self._groups.items()}
        return replace(self, _hidden=self._hidden.union(gone), _groups=groups, modules=_modules(groups))

    def reordered(self, digests: Sequence[str]) -> "ExpertPool":
        """Put the experts into the order of a release, which decides ties; nothing to do as a rule.

        Args:
            digests: The digest of every expert of the pool, once.
        """
        if [expert.digest for expert in self.experts] == list(digests):
            return self
        by_digest = {expert.digest: expert for expert in self.experts}
        return _rebuilt(by_digest[digest] for digest in digests).calibrated(self.calibration)

    def calibrated(self, calibration: Calibration | None) -> "ExpertPool":
        """See the same experts, with biases and temperatures in place of those before; None for none."""
        if calibration is self.calibration:
            return self
        groups = {key: group.calibrated(calibration) for key, group in self._groups.items()}
        return replace(self, _groups=groups, modules=_modules(groups), calibration=calibration)

    def allowing(self, allow: Iterable[str] | None, deny: Iterable[str]) -> "ExpertPool":
        """See only some of the experts; routing among them is as if the others had never come.

        Names are those of `router.query.request.RoutingChoice`; whoever is named in both is left out. Without
        a list to allow, everybody is.

        Raises:
            Refused: `EXPERT_UNKNOWN`, or `EXPERTS_EXHAUSTED` if nobody is left.
        """
        kept = set(self.experts) if allow is None else self._named(allow)
        kept -= self._named(deny)
        if len(kept) == len(self.experts):
            return self
        if not kept:
            raise Refused(
                Code.EXPERTS_EXHAUSTED,
                "The request's allow and deny lists leave no expert.",
                "Allow more, or leave the lists out and ask for the method base.",
            )
        return self._without({expert.digest for expert in self.experts if expert not in kept})

    def _named(self, names: Iterable[str]) -> set[Expert]:
        found: set[Expert] = set()
        for name in names:
            contributor, slash, rest = name.rpartition("/")
            if slash and not rest:
                theirs = {expert for expert in self.experts if expert.contributor == contributor}
                if not theirs:
                    raise self._unknown(f"There is no expert of contributor {contributor!r:.200}")
                found |= theirs
            else:
                found.add(self.find(name))
        return found

    def find(self, name: str) -> Expert:
        """Look an expert up by `name` or `contributor/name`.

        Raises:
            Refused: `EXPERT_UNKNOWN`, also if several contributors have an expert of that name.
        """
        found = [expert for expert in self.experts if name in (expert.name, expert.full_name)]
        if len(found) == 1:
            return found[0]
        reason = "There is no expert" if not found else "Several contributors have an expert"
        raise self._unknown(f"{reason} {name!r:.200}")

    def _unknown(self, reason: str) -> Refused:
        known = ", ".join(expert.full_name for expert in self.experts) or "none"
        return Refused(Code.EXPERT_UNKNOWN, f"{reason} in this release.", f"It holds: {known}.")

    def _row(self, digest: str) -> int | None:
        rows = self._store.rows.get(digest, ())
        return next((row for row in rows if row < self._length and row not in self._hidden), None)


def _rebuilt(experts: Iterable[Expert]) -> ExpertPool:
    pool = ExpertPool()
    for expert in experts:
        pool = pool.add(expert)
    return pool


def _by_group(modules: Mapping[str, ExpertModule]) -> dict[_Key, dict[str, ExpertModule]]:
    groups: dict[_Key, dict[str, ExpertModule]] = {}
    for path, part in modules.items():
        groups.setdefault((shared_input(path), len(part.gate)), {})[path] = part
    return groups


def _modules(groups: _Groups) -> Mapping[str, ModuleExperts]:
    return MappingProxyType(
        {
            path: ModuleExperts(group, slot)
            for group in groups.values()
            for slot, path in enumerate(group.store.paths)
            if group.counts[slot]
        }
    )
