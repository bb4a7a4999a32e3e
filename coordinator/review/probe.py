"""What only the model can tell: do the experts, put together, still compute?"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from coordinator.registry.registry import Registry
from coordinator.review.bundle_cache import Cache
from protocol.bundle import Bundle
from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.release import ReleasedExpert

if TYPE_CHECKING:
    from router.model.routed_model import RoutedModel  # torch comes with the first expert


class Reviewer:
    """One long-lived model that holds the newest release, and tries each new expert beside the others.

    Args:
        load: Makes the model, with no experts; called once, when the first expert comes.
        registry: Knows the bundles.
        cache: Opens them.
        probe: Public texts.
    """

    def __init__(
        self, load: Callable[[], "RoutedModel"], registry: Registry, cache: Cache, probe: Sequence[str]
    ) -> None:
        self._load, self._registry, self._cache, self._probe = load, registry, cache, probe
        self._model: RoutedModel | None = None

    def try_expert(self, experts: Sequence[ReleasedExpert], new: ReleasedExpert) -> float:
        """Run the model with one more expert, and return its loss on the probe in nats a token.

        Args:
            experts: The list that the new expert would be released in.
            new: The new one.

        Raises:
            Refused: `PROBE_FAILED`, or what the router refuses the bundle with; the new expert is out again.
            Unavailable: The model cannot be brought to the experts before.
        """
        others = {expert.bundle: expert for expert in experts if expert.bundle != new.bundle}
        try:
            model = self._model = self._model or self._load()
            for digest in set(model.digests) - others.keys():
                model.remove(digest)
            for digest, expert in others.items():
                if digest not in model.digests:
                    model.append(self._open(digest), name=expert.name, contributor=expert.contributor)
        except Refused as error:  # the base or an older expert: not the new one's fault
            raise Unavailable(Code.INTERNAL, error.message, error.hint) from error
        try:
            model.append(self._open(new.bundle), name=new.name, contributor=new.contributor)
            return model.probe(self._probe)
        except GreylagError:
            if new.bundle in model.digests:
                model.remove(new.bundle)
            raise

    def _open(self, digest: str) -> Bundle:
        row = self._registry.bundles.find(digest)
        if row is None:
            raise Unavailable(Code.STORE_DAMAGED, f"The registry lost bundle {digest[:16]}.", "Restore the registry.")
        return self._cache.open(row)
