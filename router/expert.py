"""One expert, ready to run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file
from torch import Tensor

from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle
from protocol.errors import Code, Refused
from protocol.fit import check_tensors, is_constant
from protocol.tensors import ADAPTER_PREFIX
from router.attach import Linear, computing_like
from router.gate import standardise
from router.kinds import make_part
from router.part import ExpertModule


@dataclass(frozen=True, eq=False)
class Expert:
    """One contributor's expert, ready to run."""

    digest: str
    """Identity of its bundle."""
    name: str
    contributor: str
    modules: Mapping[str, ExpertModule]
    source: Path | None = None
    """Folder of its bundle."""

    @cached_property
    def plain(self) -> bool:
        """Whether the expert adds s B A u at every module, and nothing else."""
        return all(part.plain for part in self.modules.values())

    @property
    def full_name(self) -> str:
        """`contributor/name`, unique in a pool."""
        return f"{self.contributor}/{self.name}" if self.contributor else self.name


def load_expert(
    bundle: Bundle,
    linears: Mapping[str, Linear],
    *,
    dtype: torch.dtype,
    name: str | None = None,
    contributor: str = "",
) -> Expert:
    """Read a verified bundle's tensors.

    Args:
        bundle: As `protocol.bundle.open_bundle` gives it.
        linears: The base's modules by path; the expert's tensors go where theirs are.
        dtype: What quantised modules compute in; the others do in the dtype of their weights.
        name: Name in the release; without one, the name in the spec.
        contributor: The contributor's name in the release.

    Raises:
        Refused: `TENSOR_HEADER`, `TENSOR_NAMES`, `TENSOR_SHAPE` or `TENSOR_DTYPE` for tensors that are not the
            spec's, `NOT_FINITE` for numbers that are not, or that `dtype` cannot hold, `CONSTANT_GATE`, and as
            `make_part`.
    """
    check_tensors(bundle)
    adapter, gates = load_file(bundle.folder / ADAPTER_WEIGHTS), load_file(bundle.folder / GATES)

    def finite(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if not tensor.to(dtype).isfinite().all():
            raise Refused(Code.NOT_FINITE, f"{name} of bundle {bundle.digest[:16]} is not finite in {dtype}.")
        return tensor

    modules = {}
    for path, module in bundle.spec.modules.items():
        like = computing_like(linears[path], dtype)
        keys = {name: f"{ADAPTER_PREFIX}{path}.{name}" for name in module.tensors}
        tensors = {name: finite(key, adapter[key], like.dtype) for name, key in keys.items()}
        gate = _standardised(f"{path}.gate", gates[f"{path}.gate"], bundle)
        modules[path] = make_part(path, module, tensors, linears[path], gate.to(like.device), like)
    return Expert(bundle.digest, name or bundle.spec.name, contributor, MappingProxyType(modules), bundle.folder)


def _standardised(name: str, gate: Tensor, bundle: Bundle) -> Tensor:
    # In float64, once: a gate of large mean would lose digits in float32.
    gate = gate.double()
    if not gate.isfinite().all():
        raise Refused(Code.NOT_FINITE, f"{name} of bundle {bundle.digest[:16]} is not finite.")
    if is_constant(gate.mean().item(), gate.std(correction=0).item()):
        raise Refused(
            Code.CONSTANT_GATE, f"{name} of bundle {bundle.digest[:16]} is constant, so it cannot route.", "Train it."
        )
    return standardise(gate).float()
