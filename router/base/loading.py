"""Base models: what they are (by content) and how they are loaded."""

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypedDict, Unpack

from protocol.errors import Code, Refused
from protocol.spec import Architecture
from router.base.device_map import AUTO, Bits, quantising_options, spreading_options
from router.base.fingerprint import first_line, locate, tokenizer_files, unreadable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOO_FAR = "dispatched on the CPU or the disk"
"""What transformers says of a quantised model that would be offloaded."""


@dataclass(frozen=True)
class Base:
    """A base model, frozen and in eval mode, with its tokenizer."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    source: str = ""
    """Folder or Hub id that it was loaded from."""

    @property
    def architecture(self) -> Architecture:
        """Which of the two families the model belongs to."""
        return "encoder-decoder" if self.model.config.is_encoder_decoder else "decoder-only"

    @property
    def positions(self) -> int | None:
        """Most tokens that the model takes at once, a decoder's answer included; None for no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)


class Loading(TypedDict, total=False):
    """How a base model is held in memory."""

    device: str | None
    """A torch device, or `auto`: all GPUs, then memory, then disk. Without one, the first GPU, or the CPU."""
    max_memory: Mapping[str, str] | None
    """Most that the base takes of some devices with `auto`: `cpu`, or a GPU's number, to an amount as in `20GiB`."""
    dtype: str | None
    """A torch dtype's name; without one, the dtype of the checkpoint."""
    quantise: Bits | None
    """Bits in which linear modules hold their weights; without it, those of `dtype`."""


def load_base(name_or_path: str, **loading: Unpack[Loading]) -> Base:
    """Load a base model from a folder or the Hugging Face Hub; safetensors only.

    Args:
        name_or_path: Folder or Hub id.
        loading: How it is held in memory.

    Raises:
        Refused: `BASE_UNREADABLE`, or `SETTINGS_INVALID` for a device or library that is not there.
    """
    import torch  # noqa: PLC0415 - seconds of import that fingerprinting does not need
    import transformers  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415

    folder = locate(name_or_path)
    transformers.utils.logging.disable_progress_bar()  # the doors draw their own
    device = loading.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if loading.get("max_memory") and device != AUTO:
        raise Refused(
            Code.SETTINGS_INVALID, f"Amounts of memory say nothing of a base on the device {device}.",
            "Give --device auto with them.",
        )  # fmt: skip
    try:
        model = _load(folder, device, loading)
        tokenizer_files(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if loading.get("quantise") and device == AUTO and _TOO_FAR in str(error):
            raise Refused(
                Code.SETTINGS_INVALID,
                "A base in few bits lies on GPUs alone or in memory alone, and this one does not fit there.",
                "Give more with --max-memory, or leave --quantise out.",
            ) from error
        raise unreadable(name_or_path, first_line(error)) from error
    if set((getattr(model, "hf_device_map", None) or {}).values()) == {"disk"}:
        raise Refused(
            Code.SETTINGS_INVALID,
            "The memory that the base may take does not hold even its largest layer.",
            "Give more with --max-memory.",
        )
    try:
        model = model if loading.get("quantise") or device == AUTO else model.to(device)
    except (RuntimeError, AssertionError) as error:  # no such device, or too little memory on it
        raise Refused(
            Code.SETTINGS_INVALID,
            f"The device {device} cannot be used: {first_line(error)}.",
            "Leave --device out, or give cpu, cuda or auto.",
        ) from error
    return Base(model.eval().requires_grad_(requires_grad=False), tokenizer, name_or_path)


def _load(folder: Path, device: str, loading: Loading) -> "PreTrainedModel":
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM  # noqa: PLC0415

    config, dtype, quantise = AutoConfig.from_pretrained(folder), loading.get("dtype"), loading.get("quantise")
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    options = {} if quantise is None else quantising_options(quantise, dtype or config.dtype, device)
    with ExitStack() as stack:
        if device == AUTO:
            # For weights that are not used as they lie in the model's files, such as joined experts of its own.
            scratch = stack.enter_context(TemporaryDirectory(prefix="greylag-"))
            options |= spreading_options(loading.get("max_memory") or {}) | {"offload_folder": scratch}
        model = auto.from_pretrained(folder, use_safetensors=True, dtype=dtype or "auto", **options)
        weakref.finalize(model, stack.pop_all().close)
    for module in model.modules():
        # On some CPUs bitsandbytes writes a 4-bit weight over in another layout when it first computes with it. Such a
        # weight can be read back no more, lets no gradient through, and is damaged if two threads come first.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
    return model
