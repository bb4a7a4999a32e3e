"""What only the model can tell: do the experts, put together, still compute?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from coordinator.registry.registry import Registry
from coordinator.review.bundle_cache import Cache
from protocol.bundle import Bundle
from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.release import ReleasedExpert


class Model(Protocol):
    """What reviewing needs of `router.model.routed_model.RoutedModel`."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of the experts that it holds."""

    def append(self, bundle: Bundle, *, name: str | None = None, contributor: str = "") -> None:
        """Add one expert."""

    def remove(self, digest: str) -> None:
        """Take one expert out."""

    def probe(self, texts: list[str]) -> float:
        """Run on texts, and return the mean loss in nats a token."""


class Reviewer:
    """One long-lived model that holds the newest release, and tries each new expert beside the others.

    Args:
        load: Makes the model, with no experts; called once, when the first expert comes.
        registry: Knows the bundles.
        cache: Opens them.
        probe: Public texts.
    """

    def __init__(self, load: Callable[[], Model], registry: Registry, cache: Cache, probe: Sequence[str]) -> None:
        self._load, self._registry, self._cache, self._probe = load, registry, cache, list(probe)
        self._model: Model | None = None

    def hold(self, experts: Sequence[ReleasedExpert]) -> Model:
        """Bring the model to exactly these experts; those it holds already are left alone."""
        model = self._model = self._model or self._load()
        wanted: Mapping[str, ReleasedExpert] = {expert.bundle: expert for expert in experts}
        for digest in model.digests:
            if digest not in wanted:
                model.remove(digest)
        held = set(model.digests)
        for digest, expert in wanted.items():
            if digest not in held:
                model.append(self._open(digest), name=expert.name, contributor=expert.contributor)
        return model

    def try_expert(self, experts: Sequence[ReleasedExpert], new: ReleasedExpert) -> float:
        """Run the model with one more expert, and return its loss on the probe in nats a token.

        Args:
            experts: The list that the new expert would be released in.
            new: The new one.

        Raises:
            Refused: `PROBE_FAILED`, or what the router refuses the bundle with; the new expert is out again.
            Unavailable: The model cannot be brought to the experts before.
        """
        try:
            model = self.hold([expert for expert in experts if expert.bundle != new.bundle])
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
