"""Memory that is free, and what a lack of it is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from protocol.errors import Code, Unavailable

_CGROUP = Path("/sys/fs/cgroup")


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
