"""A base whose weights are held in 4 or 8 bits, by bitsandbytes; experts stay in the dtype that the model computes in.

A quantised base is the base that its files are: it keeps their fingerprint, and takes the same experts.
"""

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from protocol.errors import Code, Refused

if TYPE_CHECKING:
    from torch import nn

Bits = Literal["4bit", "8bit"]


def loading_options(quantise: Bits, dtype: Any, device: str) -> dict[str, Any]:
    """Return what `from_pretrained` needs to quantise a model while it loads.

    Args:
        quantise: 4 bits (NF4, arXiv 2305.14314) or 8 bits (LLM.int8, arXiv 2208.07339).
        dtype: The torch dtype to compute in.
        device: A torch device.

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


def keep_readable(model: "nn.Module") -> None:
    """Have 4-bit weights stay as they are.

    On some CPUs bitsandbytes writes a weight over in another layout when it first computes with it. Such a weight
    can be read back no more, lets no gradient through, and is damaged if two threads come first.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
