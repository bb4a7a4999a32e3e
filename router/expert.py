"""One expert, ready to run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
    a_t: Tensor = field(init=False)
    """[d, r], a view: making one costs as much as using it."""
    b_t: Tensor = field(init=False)
    """[r, o], a view."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "a_t", self.a.T)
        object.__setattr__(self, "b_t", self.b.T)


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

    @property
    def full_name(self) -> str:
        """`contributor/name`, unique in a pool."""
        return f"{self.contributor}/{self.name}" if self.contributor else self.name


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
    return Expert(bundle.digest, name or bundle.spec.name, contributor, MappingProxyType(modules), bundle.folder)
