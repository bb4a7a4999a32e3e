"""Whether experts fit: asked before a byte of them is loaded, so that a pool beyond memory harms nothing."""

import math
from collections.abc import Mapping, Sequence

import torch

from protocol.adapters import Module
from protocol.bundle import Bundle
from protocol.errors import Code, Unavailable
from router.base.memory import free_bytes
from router.pool.pages import GATE_BYTES
from router.pool.pool import ExpertPool


def check_room(
    bundles: Sequence[Bundle], pool: ExpertPool, places: Mapping[str, torch.device], dtype: torch.dtype
) -> None:
    """Refuse experts that do not fit where the modules, by path, compute, beside those of the pool.

    Raises:
        Unavailable: `MEMORY_FULL`.
    """
    for device in set(places.values()):
        parts = [
            {path: module for path, module in bundle.spec.modules.items() if places.get(path) == device}
            for bundle in bundles
        ]
        sizes = [loaded_bytes(modules, dtype) for modules in parts]
        # A GPU gives memory to pages as they are opened, a CPU as they are written.
        placed = pool.opened_bytes(parts, dtype) if device.type == "cuda" else sum(sizes)
        # Each expert is read whole before it is copied to its place.
        needed = placed + max(sizes, default=0) + (pool.moved_bytes(device) if bundles else 0)
        free = free_bytes(device)
        if needed > free:
            raise Unavailable(
                Code.MEMORY_FULL,
                f"{len(bundles)} experts need {_gib(needed)} of memory on {device}; {_gib(free)} are free.",
                "Free some, choose a larger device or a smaller dtype; what was loaded stays in use.",
            )


def loaded_bytes(modules: Mapping[str, Module], dtype: torch.dtype) -> int:
    """Count what an expert's modules take in memory, in bytes.

    Adapters take the model's dtype, gates stay float32, and may be kept in half precision as well.
    """
    return sum(
        dtype.itemsize * sum(math.prod(shape) for shape in module.tensors.values()) + GATE_BYTES * module.d_in
        for module in modules.values()
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
