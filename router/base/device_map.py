"""A large base: spread over all GPUs, then the machine's memory, then its disk, or held in 4 or 8 bits.

Accelerate spreads. A weight that lies elsewhere than its module computes is fetched when the module is called, by
accelerate's hook on it, and let go of afterwards; in between it is a tensor without numbers ("meta"). What has to lie
beside a weight, such as an expert or a gate, therefore asks `router.base.linear` where that is.

Bitsandbytes quantises. A quantised base is the base that its files are: it keeps their fingerprint, and takes the same
experts, which stay in the dtype that the model computes in.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from protocol.errors import Code, Refused

if TYPE_CHECKING:
    from torch import nn

Bits = Literal["4bit", "8bit"]
AUTO = "auto"
"""The device of a base that is spread."""
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
    """Return what `from_pretrained` needs to spread a model, with the most that it takes of some devices.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    import torch  # noqa: PLC0415 - seconds of import
    from accelerate.utils import convert_file_size_to_int  # noqa: PLC0415

    from router.base.memory import free_bytes  # noqa: PLC0415

    given = read_amounts(f"{device}={amount}" for device, amount in max_memory.items())
    gpus = torch.cuda.device_count()
    free = {str(number): free_bytes(torch.device("cuda", number)) for number in range(gpus)}
    free["cpu"] = free_bytes(torch.device("cpu"))
    if missing := sorted(given.keys() - free.keys()):
        raise Refused(Code.SETTINGS_INVALID, f"There is no GPU {missing[0]} here; found {gpus}.", "Count them from 0.")
    # Else a line for each model that some weights lie elsewhere.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    amounts = {name: int(_SHARE * size) for name, size in free.items()}
    amounts |= {name: convert_file_size_to_int(amount) for name, amount in given.items()}
    by_device = {name if name == "cpu" else int(name): size for name, size in amounts.items()}
    return {"device_map": AUTO, "max_memory": by_device}


def is_offloaded(model: "nn.Module") -> bool:
    """Tell whether some weights lie elsewhere than they are computed with."""
    return any(parameter.is_meta for parameter in model.parameters())


def quantising_options(quantise: Bits, dtype: Any, device: str) -> dict[str, Any]:
    """Return what `from_pretrained` needs to quantise a model that computes in a torch dtype.

    4 bits are NF4 (arXiv 2305.14314), 8 bits LLM.int8 (arXiv 2208.07339).

    Raises:
        Refused: `SETTINGS_INVALID` without bitsandbytes.
    """
    if find_spec("bitsandbytes") is None:
        raise Refused(
            Code.SETTINGS_INVALID,
            "A quantised base needs the library bitsandbytes, which is not installed.",
            "Install it with: pip install 'greylag[quantised]'",
        )
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 - seconds of import

    # Else a line for every product that is computed in 8 bits.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    config = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        if quantise == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": config, "device_map": {"": device}}
