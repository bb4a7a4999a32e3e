"""One expert for every token and module."""

from torch import Tensor

from router.layer.choice import CommonChoice
from router.pool.expert import Expert
from router.pool.group_view import ModuleExperts


class SingleExpert:
    """One expert, as its contributor trained it."""

    def __init__(self, expert: Expert) -> None:
        self._expert = expert

    def choose(self, module: ModuleExperts, u: Tensor) -> CommonChoice | None:  # noqa: ARG002 - a Method's signature
        """Choose that expert for all of u [..., d] wherever it touches the module."""
        row = module.by_digest.get(self._expert.digest)
        return None if row is None else CommonChoice([row], [1.0])
