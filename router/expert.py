"""One expert, ready to run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from safetensors.torch import load_file
from torch import Tensor

from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle
from protocol.tensors import ADAPTER_PREFIX, adapter_tensors, check, gate_tensors
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
        Refused: `TENSOR_NAMES` if the bundle holds more than its LoRA, such as DoRA's magnitudes, and
            `TENSOR_SHAPE` or `TENSOR_DTYPE` if it holds other tensors than it declares.
    """
    check(bundle.folder / ADAPTER_WEIGHTS, adapter_tensors(bundle.spec))
    check(bundle.folder / GATES, gate_tensors(bundle.spec))
    adapter = load_file(bundle.folder / ADAPTER_WEIGHTS)
    gates = load_file(bundle.folder / GATES)
    modules = {
        path: ExpertModule(
            a=adapter[f"{ADAPTER_PREFIX}{path}.lora_A.weight"].to(device, dtype),
            b=adapter[f"{ADAPTER_PREFIX}{path}.lora_B.weight"].to(device, dtype),
            scaling=module.scaling,
            # In float64, once: a gate of large mean would lose digits in float32.
            gate=standardise(gates[f"{path}.gate"].double()).float().to(device),
        )
        for path, module in bundle.spec.modules.items()
    }
    return Expert(bundle.digest, name or bundle.spec.name, contributor, MappingProxyType(modules))
