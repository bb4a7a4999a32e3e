"""Several processes that train one expert together, each with a GPU of its own, as torchrun starts them.

    torchrun --nproc-per-node 4 --no-python greylag-client train --data notes.jsonl

Each takes its part of every batch, and gradients are averaged over all, so that a step learns what it would learn in
one process. The first leads: it alone writes, and speaks.
"""

import os
from collections.abc import Callable

from protocol.errors import Code, Refused

_OTHER_WAYS = {
    "ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}  # fmt: skip


def processes() -> int:
    """Count the processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Tell whether this process is the first, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def check_together(device: str | None) -> None:
    """Refuse ways of training together that are not built.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    if processes() == 1:
        return
    reason = next(
        (f"through {way}" for name, way in _OTHER_WAYS.items() if os.environ.get(name, "").lower() == "true"), None
    )
    if os.environ.get("LOCAL_WORLD_SIZE", str(processes())) != str(processes()):
        reason = "on several machines"
    if device == "auto":
        reason = "over a base that is spread"
    if reason:
        raise Refused(
            Code.SETTINGS_INVALID, f"Several processes do not train {reason}: each needs the whole base on its GPU.",
            "Start them on one machine with torchrun --nproc-per-node, or one process with --device auto.",
        )  # fmt: skip


def join(device: str | None) -> str | None:
    """Meet the other processes, and return the device of this one."""
    if processes() == 1:
        return device
    from accelerate import PartialState  # noqa: PLC0415 - seconds of import

    return str(PartialState(cpu=device == "cpu").device)


def once(write: Callable[[], object]) -> None:
    """Let the leading process write something, and the others wait until it has."""
    if leads():
        write()
    if processes() > 1:
        from accelerate import PartialState  # noqa: PLC0415 - as above

        PartialState().wait_for_everyone()
