"""No expert at all."""

from torch import Tensor

from router.pool.group_view import ModuleExperts


class BaseOnly:
    """The base model alone, bit for bit."""

    def choose(self, module: ModuleExperts, u: Tensor) -> None:  # noqa: ARG002 - a Method's signature
        """Choose nobody, whatever u [t, d] is."""
        return
