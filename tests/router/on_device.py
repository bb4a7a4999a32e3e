"""A tensor that says it is on a GPU, so that a CPU can walk the way of one."""

from torch import Tensor


class OnDevice(Tensor):
    """Its operations run on the CPU, and what they give says the same."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def on_device(x: Tensor) -> Tensor:
    return x.as_subclass(OnDevice)
