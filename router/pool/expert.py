"""One expert, ready to run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from protocol import tensors as headers
from protocol.adapters import Shape
from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle
from protocol.compatibility import is_constant
from protocol.errors import Code, Refused
from protocol.spec import BaseModelRef
from protocol.tensors import ADAPTER_PREFIX, CENTROID, TensorInfo
from router.base.linear import Linear, computing_like, shape
from router.pool.conversion import make_expert_module
from router.pool.expert_module import ExpertModule
from router.pool.gate import standardise

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""By safetensors' codes."""
_ANOTHER_BASE = "Use the base model that the expert was trained on."


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
    means: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    """Mean input [d] of every module, float32; empty if its contributor does not tell."""
    centroid: Tensor | None = None
    """[d] float32 of length 1, where its training inputs lie, d of the embedding model; None if nobody tells."""
    embedding: BaseModelRef | None = None
    """The model that placed the centroid; None for the base model itself."""

    @cached_property
    def plain(self) -> bool:
        """Whether the expert adds s B A u at every module, and nothing else."""
        return all(part.plain for part in self.modules.values())

    @property
    def full_name(self) -> str:
        """`contributor/name`, unique in a pool."""
        return f"{self.contributor}/{self.name}" if self.contributor else self.name


def load_expert(
    bundle: Bundle, linears: Mapping[str, Linear], *, dtype: torch.dtype, name: str | None = None, contributor: str = ""
) -> Expert:
    """Read a verified bundle's tensors.

    Args:
        bundle: As `protocol.bundle.open_bundle` gives it.
        linears: The base's modules that experts may touch, by path; the expert's tensors go where theirs are.
        dtype: What quantised modules compute in; the others do in the dtype of their weights.
        name: Name in the release; without one, the name in the spec.
        contributor: The contributor's name in the release.

    Raises:
        Refused: `MODULE_UNKNOWN`, or `TENSOR_SHAPE` if the expert was made for a model of other widths;
            `TENSOR_HEADER`, `TENSOR_NAMES`, `TENSOR_SHAPE` or `TENSOR_DTYPE` for tensors that are not the spec's,
            `NOT_FINITE` for numbers that are not, or that `dtype` cannot hold, `CONSTANT_GATE`, and as
            `make_expert_module`.
    """
    adapter = _mapped(bundle.folder / ADAPTER_WEIGHTS, headers.adapter_tensors(bundle.spec))
    gates = _mapped(bundle.folder / GATES, headers.gate_tensors(bundle.spec))

    def finite(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        # By the largest numbers, since a copy in that dtype is made later.
        if not max(map(abs, torch.stack(tensor.aminmax()).tolist())) <= torch.finfo(dtype).max:
            raise Refused(Code.NOT_FINITE, f"{name} of bundle {bundle.digest[:16]} is not finite in {dtype}.")
        return tensor

    modules, means, told_means = {}, {}, set(bundle.spec.told)
    for path, module in bundle.spec.modules.items():
        linear = _fitting(linears, path, module)
        like = computing_like(linear, dtype)
        keys = {name: f"{ADAPTER_PREFIX}{path}.{name}" for name in module.tensors}
        tensors = {name: finite(key, adapter[key], like.dtype) for name, key in keys.items()}
        # In float64, once: a gate of large mean would lose digits in float32.
        gate = standardise(_varied(f"{path}.gate", gates[f"{path}.gate"], bundle)).float()
        modules[path] = make_expert_module(path, module, tensors, linear, gate.to(like.device), like)
        if path in told_means:
            mean = _varied(f"{path}.mean", gates[f"{path}.mean"], bundle).float()
            means[path] = finite(f"{path}.mean", mean, torch.float16).to(like.device)
    told = bundle.spec.statistics.centroid
    centroid = None if told is None else functional.normalize(finite(CENTROID, gates[CENTROID], torch.float32), dim=0)
    told_by = told.embedding if told else None
    return Expert(
        bundle.digest, name or bundle.spec.name, contributor, MappingProxyType(modules), bundle.folder,
        MappingProxyType(means), centroid, told_by,
    )  # fmt: skip


def check_finite(bundle: Bundle) -> None:
    """Refuse a bundle whose numbers no model could use, before one is there to try (`NOT_FINITE`)."""
    files = {ADAPTER_WEIGHTS: headers.adapter_tensors, GATES: headers.gate_tensors}
    for file, expected in files.items():
        for name, tensor in _mapped(bundle.folder / file, expected(bundle.spec)).items():
            if not all(map(math.isfinite, torch.stack(tensor.aminmax()).tolist())):
                raise Refused(Code.NOT_FINITE, f"{name} of bundle {bundle.digest[:16]} holds NaN or infinity.")


def _fitting(linears: Mapping[str, Linear], path: str, expected: Shape) -> Linear:
    linear = linears.get(path)
    if linear is None:
        raise Refused(
            Code.MODULE_UNKNOWN, f"The base model has no module {path} that an expert may touch.", _ANOTHER_BASE
        )
    found = shape(linear)
    if (found.d_in, found.d_out) != (expected.d_in, expected.d_out):
        raise Refused(
            Code.TENSOR_SHAPE,
            f"{path} maps {found.d_in} to {found.d_out} features; the expert expects {expected.d_in} to "
            f"{expected.d_out}.",
            _ANOTHER_BASE,
        )
    return linear


def _mapped(path: Path, expected: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Read a safetensors file by its header, which is held against the exact expected tensors; parsed once."""
    found = headers.check(path, expected)
    content = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    tensors = {}
    for name, info in found.items():
        numbers, dtype = content[info.offset : info.offset + info.nbytes], _DTYPES[info.dtype]
        # A header of odd length leaves numbers where they cannot be read.
        numbers = numbers.clone() if info.offset % dtype.itemsize else numbers
        tensors[name] = numbers.view(dtype).view(info.shape)
    return tensors


def _varied(name: str, tensor: Tensor, bundle: Bundle) -> Tensor:
    """Widen a gate or a mean, [d], to float64; refused where standardising it would leave nothing but noise."""
    vector = tensor.double()
    if not vector.isfinite().all():
        raise Refused(Code.NOT_FINITE, f"{name} of bundle {bundle.digest[:16]} is not finite.")
    if is_constant(vector.mean().item(), vector.std(correction=0).item()):
        raise Refused(
            Code.CONSTANT_GATE, f"{name} of bundle {bundle.digest[:16]} is constant, so it cannot route.", "Train it."
        )
    return vector
