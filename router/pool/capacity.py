"""Whether experts fit: asked before a byte of them is loaded, so that a pool beyond memory harms nothing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from protocol.adapters import Module
from protocol.bundle import Bundle
from protocol.errors import Code, Unavailable
from router.pool.pages import GATE_BYTES
from router.pool.pool import ExpertPool

_CGROUP = Path("/sys/fs/cgroup")


def check_room(
    bundles: Sequence[Bundle], pool: ExpertPool, places: Mapping[str, torch.device], dtype: torch.dtype
) -> None:
    """Refuse experts that do not fit into memory.

    Args:
        bundles: What is about to be loaded.
        pool: Where they are to go.
        places: Where each module computes, and its experts with it, by path.
        dtype: What the model computes in.

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


@contextmanager
def memory_watched() -> Iterator[None]:
    """Say in words that a device has no memory left for what is inside.

    Raises:
        Unavailable: `MEMORY_FULL`.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:  # the device's limit, not the expert's fault
        raise Unavailable(
            Code.MEMORY_FULL,
            "The device has too little memory for the routed model.",
            "Free some, or choose another device; nothing was refused, and what was loaded stays in use.",
        ) from error


def loaded_bytes(modules: Mapping[str, Module], dtype: torch.dtype) -> int:
    """Count what an expert's modules take in memory, in bytes.

    Adapters take the model's dtype, gates stay float32, and may be kept in half precision as well.
    """
    return sum(
        dtype.itemsize * sum(math.prod(shape) for shape in module.tensors.values()) + GATE_BYTES * module.d_in
        for module in modules.values()
    )


def free_bytes(device: torch.device) -> int:
    """Return the memory in bytes that can still be had on a device, within the limit of a container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds in reserve is free to us, though not to others.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(psutil.virtual_memory().available, _free_in_container())


def _free_in_container() -> int:
    """Read the limit of the control group, version 2; without one there is no end."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((_CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Files that were read a while ago stay in memory until it is wanted for something else.
        return max(limit - used + int(statistics.get("inactive_file", 0)), 0)
    except (OSError, ValueError):
        return 1 << 62


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
