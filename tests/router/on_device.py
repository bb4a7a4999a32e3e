"""Stand-ins for a GPU, so that a CPU can walk the way of one."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class OnDevice(Tensor):
    """A tensor that says it is on a GPU; what its operations give says the same."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def on_device(x: Tensor) -> Tensor:
    return x.as_subclass(OnDevice)


class NothingIsAsked(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what would make the host wait for a device, or make shapes depend on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "unique", "bincount", "masked_select", "is_nonzero", "equal", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN204
        name = func.overloadpacket.__name__
        assert not name.startswith(self.FORBIDDEN), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))
