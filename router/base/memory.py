"""Memory that is free, and what a lack of it is called."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

from protocol.errors import Code, Unavailable

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Files of a control group that tell its limit and its use, and what of its use is not needed, in memory.stat."""
_NO_END = 1 << 62


@contextmanager
def memory_watched() -> Iterator[None]:
    """Say in words that a device has no memory left for what is inside (`MEMORY_FULL`)."""
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


# Neither psutil nor accelerate looks at control groups, and a container that goes beyond its limit is killed.
def _free_in_container() -> int:
    """Return what the control groups that this process is in leave it, the tightest of them; no end without one."""
    free = [_NO_END]
    for line in _OWN.read_text().splitlines() if _OWN.is_file() else ():
        controllers, _, path = line.partition(":")[2].partition(":")
        if "memory" in controllers.split(","):
            free += _free_on_the_way(_CGROUPS / "memory", path, _VERSION_1)
        elif not controllers:
            free += _free_on_the_way(_CGROUPS, path, _VERSION_2)
            free += _free_on_the_way(_CGROUPS / "unified", path, _VERSION_2)
    return min(free)


def _free_on_the_way(mount: Path, path: str, files: tuple[str, str, str]) -> Iterator[int]:
    """Tell what each group leaves, from one's own up to where groups are mounted; those out of sight leave no trace."""
    limit, used, inactive = files
    own = mount / path.lstrip("/")
    for group in (own, *own.parents):
        if not group.is_relative_to(mount):
            return
        with suppress(OSError, ValueError):  # "max" where there is no limit
            most = int((group / limit).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # Files that were read a while ago stay in memory until it is wanted for something else.
            yield max(most - int((group / used).read_text()) + int(statistics.get(inactive, 0)), 0)
