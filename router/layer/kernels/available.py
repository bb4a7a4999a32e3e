"""Whether Triton's kernels can run here."""

import os
import shutil
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def beside(u: Tensor) -> AbstractContextManager[None]:
    """Make the device of u [t, d] the thread's: Triton launches there, wherever its tensors are."""
    return torch.cuda.device_of(u)


def contiguous_rows(u: Tensor) -> Tensor:
    """Return u [t, d] with the numbers of a row side by side, copied only if they are not."""
    return u if u.stride(-1) == 1 else u.contiguous()


@cache
def kernels(dtype: torch.dtype) -> ModuleType | None:
    """Triton's kernels, where there are Triton and the C compiler that it asks for to launch them."""
    if dtype not in _DTYPES:
        return None
    compilers = ("clang", "gcc")
    found = find_spec("triton") is not None and ("CC" in os.environ or any(map(shutil.which, compilers)))
    return import_module("router.layer.kernels.launch") if found else None


def launcher() -> ModuleType:
    """Import Triton's kernels, which `kernels` found."""
    return import_module("router.layer.kernels.launch")
