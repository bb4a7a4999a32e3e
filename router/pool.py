"""Experts in memory, arranged by module.

A pool is a value: adding or removing an expert makes a new pool that shares all tensors with the
old one. A request keeps the pool that it began with, so a swap in the middle of it changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from safetensors.torch import load_file
from torch import Tensor

from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle
from protocol.errors import Code, Refused
from protocol.fit import check_tensors
from protocol.tensors import ADAPTER_PREFIX
from router.gate import standardise


@dataclass(frozen=True, eq=False)
class ExpertModule:
    """One expert at one module."""

    a: Tensor
    """[r, d] in the model's dtype."""
    b: Tensor
    """[o, r] in the model's dtype."""
    scaling: float
    gate: Tensor
    """[d] float32, standardised."""


@dataclass(frozen=True, eq=False)
class Expert:
    """One contributor's expert, ready to run."""

    digest: str
    """Identity of its bundle."""
    name: str
    contributor: str
    modules: Mapping[str, ExpertModule]

    @property
    def full_name(self) -> str:
        """`contributor/name`, unique in a pool."""
        return f"{self.contributor}/{self.name}" if self.contributor else self.name


@dataclass(frozen=True, eq=False)
class ModuleExperts:
    """The experts that touch one module, in pool order."""

    experts: tuple[Expert, ...]
    parts: tuple[ExpertModule, ...]
    gates: Tensor
    """[n, d] float32, standardised."""

    def add(self, expert: Expert, part: ExpertModule) -> "ModuleExperts":
        """Append an expert."""
        gates = torch.cat([self.gates, part.gate.unsqueeze(0)])
        return ModuleExperts((*self.experts, expert), (*self.parts, part), gates)

    def remove(self, digest: str) -> "ModuleExperts":
        """Leave an expert out."""
        kept = [position for position, expert in enumerate(self.experts) if expert.digest != digest]
        return ModuleExperts(
            tuple(self.experts[position] for position in kept),
            tuple(self.parts[position] for position in kept),
            self.gates[kept],
        )


@dataclass(frozen=True, eq=False)
class ExpertPool:
    """Every expert of a release."""

    experts: tuple[Expert, ...] = ()
    modules: Mapping[str, ModuleExperts] = field(default_factory=lambda: MappingProxyType({}))
    """Experts by module path; a module that no expert touches is absent."""

    def add(self, expert: Expert) -> "ExpertPool":
        """Append an expert; work is proportional to that expert, not to the pool.

        Raises:
            Refused: `DUPLICATE_OF` if the pool holds the bundle already.
        """
        if any(known.digest == expert.digest for known in self.experts):
            raise Refused(Code.DUPLICATE_OF, f"Expert {expert.full_name} is in the pool already.", "Remove it first.")
        modules = dict(self.modules)
        for path, part in expert.modules.items():
            known = modules.get(path) or ModuleExperts((), (), part.gate.new_empty((0, len(part.gate))))
            modules[path] = known.add(expert, part)
        return ExpertPool((*self.experts, expert), MappingProxyType(modules))

    def remove(self, digest: str) -> "ExpertPool":
        """Leave an expert out; equal to never having added it."""
        modules = {path: experts.remove(digest) for path, experts in self.modules.items()}
        return ExpertPool(
            tuple(expert for expert in self.experts if expert.digest != digest),
            MappingProxyType({path: experts for path, experts in modules.items() if experts.experts}),
        )

    def reordered(self, digests: Sequence[str]) -> "ExpertPool":
        """Put the experts into the order of a release, which decides ties; nothing to do as a rule.

        Args:
            digests: The digest of every expert of the pool, once.
        """
        by_digest = {expert.digest: expert for expert in self.experts}
        if list(by_digest) == list(digests):
            return self
        pool = ExpertPool()
        for digest in digests:
            pool = pool.add(by_digest[digest])
        return pool

    def find(self, name: str) -> Expert:
        """Look an expert up by `name` or `contributor/name`.

        Raises:
            Refused: `EXPERT_UNKNOWN`, also if several contributors have an expert of that name.
        """
        found = [expert for expert in self.experts if name in (expert.name, expert.full_name)]
        if len(found) == 1:
            return found[0]
        known = ", ".join(expert.full_name for expert in self.experts) or "none"
        reason = "There is no expert" if not found else "Several contributors have an expert"
        raise Refused(Code.EXPERT_UNKNOWN, f"{reason} {name!r:.200} in this release.", f"It holds: {known}.")


def load_expert(
    bundle: Bundle, *, device: torch.device | str, dtype: torch.dtype, name: str | None = None, contributor: str = ""
) -> Expert:
    """Read a verified bundle's tensors.

    Args:
        bundle: As `protocol.bundle.open_bundle` gives it.
        device: Where the model is.
        dtype: What the model computes in.
        name: Name in the release; without one, the name in the spec.
        contributor: The contributor's name in the release.

    Raises:
        Refused: `TENSOR_HEADER`, `TENSOR_NAMES`, `TENSOR_SHAPE` or `TENSOR_DTYPE` for tensors that are not the
            spec's, `NOT_FINITE` for numbers that are not, or that `dtype` cannot hold.
    """
    check_tensors(bundle)
    adapter, gates = load_file(bundle.folder / ADAPTER_WEIGHTS), load_file(bundle.folder / GATES)

    def finite(name: str, tensor: Tensor) -> Tensor:
        if not tensor.isfinite().all():
            raise Refused(Code.NOT_FINITE, f"{name} of bundle {bundle.digest[:16]} is not finite in {tensor.dtype}.")
        return tensor.to(device)

    def half(path: str, letter: str) -> Tensor:
        key = f"{ADAPTER_PREFIX}{path}.lora_{letter}.weight"
        return finite(key, adapter[key].to(dtype))

    modules = {
        path: ExpertModule(
            a=half(path, "A"),
            b=half(path, "B"),
            scaling=module.scaling,
            # In float64, once: a gate of large mean would lose digits in float32.
            gate=finite(f"{path}.gate", standardise(gates[f"{path}.gate"].double()).float()),
        )
        for path, module in bundle.spec.modules.items()
    }
    return Expert(bundle.digest, name or bundle.spec.name, contributor, MappingProxyType(modules))
