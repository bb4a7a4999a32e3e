"""What other libraries say by themselves."""

import logging
import os
import sys
import warnings
from pathlib import Path


def quiet_libraries(*models: str | None) -> None:
    """Before the first import of the training libraries: no telemetry, no chatter.

    Args:
        models: The base model and others, None for none; if all are folders, the libraries are told to ask nobody.
    """
    if all(model is None or Path(model).is_dir() for model in models):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    # It reports, on being imported, which of its parts are not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes to programmers
