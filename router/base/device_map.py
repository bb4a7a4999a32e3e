"""A base that is spread over devices: over all GPUs, then the machine's memory, then its disk, by accelerate.

A weight that lies elsewhere than its module computes is fetched when the module is called, by accelerate's hook on
it, and let go of afterwards; in between it is a tensor without numbers ("meta"). What has to lie beside a weight, such
as an expert or a gate, therefore asks here where that is.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from protocol.errors import Code, Refused

if TYPE_CHECKING:
    from torch import nn


AUTO = "auto"
"""The device of a base that is spread."""
_DISK = "disk"
_SHARE = 0.9
"""Of the memory that is free; the rest is for experts and activations."""
_AMOUNT = re.compile(r"([0-9]+|cpu)=([0-9]+(?:\.[0-9]+)?[KMGT]i?B)")


def read_amounts(given: Iterable[str]) -> dict[str, str]:
    """Read amounts of memory by device, written as `0=20GiB` or `cpu=8GiB`.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    amounts = {}
    for text in given:
        found = _AMOUNT.fullmatch(text)
        if found is None:
            raise Refused(
                Code.SETTINGS_INVALID, f"{text!r:.80} is no amount of memory on a device.",
                "Write the number of a GPU, or cpu, and how much: 0=20GiB, cpu=8GiB.",
            )  # fmt: skip
        amounts[found[1]] = found[2]
    return amounts


def spreading_options(max_memory: Mapping[str, str]) -> dict[str, Any]:
    """Return what `from_pretrained` needs to spread a model while it loads.

    Args:
        max_memory: Most that it takes of some devices, as in `20GiB`; of the others it takes what is free.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    import torch  # noqa: PLC0415 - seconds of import
    from accelerate.utils import convert_file_size_to_int  # noqa: PLC0415

    from router.base.memory import free_bytes  # noqa: PLC0415

    given = read_amounts(f"{device}={amount}" for device, amount in max_memory.items())
    gpus = {str(number): torch.device("cuda", number) for number in range(torch.cuda.device_count())}
    devices = gpus | {"cpu": torch.device("cpu")}
    if missing := sorted(given.keys() - devices.keys()):
        raise Refused(
            Code.SETTINGS_INVALID, f"There is no GPU {missing[0]} here; found {len(gpus)}.", "Count them from 0."
        )
    # Else a line for each model that some weights lie elsewhere.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    amounts = {
        (name if name == "cpu" else int(name)): convert_file_size_to_int(given[name])
        if name in given
        else int(_SHARE * free_bytes(device))
        for name, device in devices.items()
    }
    return {"device_map": AUTO, "max_memory": amounts}


def check_placed(model: "nn.Module") -> None:
    """Refuse a model of which nothing lies in memory: not even one of its layers would fit there.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    if set((getattr(model, "hf_device_map", None) or {}).values()) == {_DISK}:
        raise Refused(
            Code.SETTINGS_INVALID,
            "The memory that the base may take does not hold even its largest layer.",
            "Give more with --max-memory.",
        )


def is_offloaded(model: "nn.Module") -> bool:
    """Tell whether some weights lie elsewhere than they are computed with."""
    return any(parameter.is_meta for parameter in model.parameters())
