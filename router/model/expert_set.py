"""A base model with experts that come and go while it is used."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

from protocol.bundle import Bundle
from protocol.documents import read_timestamp
from protocol.errors import Refused
from protocol.spec import Routing
from router.base.batching import encode_pairs
from router.base.linear import device_of, find_linear, linear_modules
from router.base.loading import Base
from router.base.memory import memory_watched
from router.base.progress import bar
from router.follow.workspace import Mirror
from router.layer.routed_linear import RoutedLinear
from router.methods.context import Features, MethodContext
from router.methods.features.activations import Reader
from router.methods.features.background import PublicText, read_public
from router.methods.features.embedder import Embedder
from router.methods.features.mixture import Mixtures
from router.methods.registry import resolve
from router.model.cap import Allowed, Cap, find_alike, fit_cap
from router.model.releases import Generation, Held, listing
from router.model.score_tables import Probe, ScoreTables
from router.pool.base_norms import base_norms
from router.pool.calibration import Calibration
from router.pool.capacity import check_room
from router.pool.expert import Expert, load_expert
from router.pool.norms import relative_norm
from router.pool.pool import ExpertPool
from router.query.request import Input


class ExpertSet:
    """A base model with whatever experts it holds; grows and shrinks while it answers.

    Experts come and go by exchanging the generation as a whole: a request that has begun finishes with
    the generation that it began with, and may ask for one of the few releases before it.

    Args:
        base: A loaded base model; its linear modules are replaced by routed ones.
        embedding: Folder or Hub id of the model that retrieval embeds queries by; without one, the base model.
        public: Public text, one a line, for methods that hold requests against it; without it, random tokens.
        cache: File that remembers the base model's fingerprint, and has other facts about the base kept beside it.
    """

    def __init__(
        self, base: Base, embedding: str | None = None, public: Path | None = None, cache: Path | None = None
    ) -> None:
        self.base = base
        self.held = Held()
        self._prepared: WeakKeyDictionary[ExpertPool, dict[str, bool]] = WeakKeyDictionary()
        """What was prepared for experts, and whether that has vectors of its own; the last of them comes last."""
        self._changing, self._cache = threading.Lock(), cache
        self._linears = {path: find_linear(base.model, path) for path in linear_modules(base.model)}
        self.places = {path: device_of(linear) for path, linear in self._linears.items()}
        for path, linear in self._linears.items():
            base.model.set_submodule(path, RoutedLinear(path, linear))
        reader = Reader(base, tuple(self._linears))
        embedder = Embedder.load(embedding, device=base.model.device) if embedding else Embedder.of_base(base)
        text = PublicText(reader, read_public(public) if public else (), cache)
        self.features = Features(embedder, Mixtures(reader, text))
        self._scores = ScoreTables(reader)

    @property
    def generation(self) -> Generation:
        """What answers a request that asks for no release."""
        return self.held.newest

    @generation.setter
    def generation(self, generation: Generation) -> None:
        """Exchange it, from the next request on."""
        self.held = replace(self.held, generations=(*self.held.generations[:-1], generation))

    @property
    def digests(self) -> tuple[str, ...]:
        """Bundle digests of the experts, in pool order."""
        return tuple(expert.digest for expert in self.generation.pool.experts)

    def load(self, bundle: Bundle, *, name: str | None = None, contributor: str = "") -> Expert:
        """Read a bundle onto the model's device without using it yet.

        Raises:
            Refused: As `router.pool.expert.load_expert`.
        """
        return load_expert(bundle, self._linears, dtype=self.base.model.dtype, name=name, contributor=contributor)

    def append(self, bundle: Bundle, *, name: str | None = None, contributor: str = "") -> None:
        """Add one expert from the next request on; the others are not touched.

        What then answers is no release: its number is 0.

        Raises:
            Refused: As `load`, or `DUPLICATE_OF` if the model holds the bundle already.
            Unavailable: `MEMORY_FULL`.
        """
        with self._changing, memory_watched():
            check_room([bundle], self.generation.pool, self.places, self.base.model.dtype)
            self._use(self.generation.pool.add(self.load(bundle, name=name, contributor=contributor)))

    def remove(self, digest: str) -> None:
        """Leave one expert out from the next request on; what then answers is no release, as with `append`."""
        with self._changing:
            self._use(self.generation.pool.remove(digest))

    def route_as(self, settings: Routing, statistics: Path | None = None) -> None:
        """Route by a pool's method from the next request on, with what the pool tells of public text, if any."""
        self.features.mixtures.public.follow(statistics)
        self.generation = replace(self.generation, settings=settings)

    @contextmanager
    def lacking(self, *digests: str) -> Iterator[None]:
        """Answer inside as if some experts had never been added; what they take in memory stays."""
        before, pool = self.generation, self.generation.pool
        for digest in digests:
            pool = pool.remove(digest)
        self.generation = replace(before, pool=pool)
        try:
            yield
        finally:
            self.generation = before

    def norms(self, digest: str, tick: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Measure how much one of the experts changes the base, by module (`router.pool.norms`); 1 is as large as it.

        Args:
            digest: The expert's bundle.
            tick: Called before each module; what it raises ends the measurement.

        Raises:
            Refused: `KIND_UNSUPPORTED` where the base's weights cannot be read.
        """
        (expert,) = (expert for expert in self.generation.pool.experts if expert.digest == digest)
        base, found = self._base_norms, {}
        for path, part in expert.modules.items():
            tick()
            found[path] = relative_norm(part, self._linears[path], path, base[path])
        return found

    def fit_cap(
        self,
        inputs: Sequence[Input],
        targets: Sequence[str],
        *,
        allowed: Allowed,
        calibration: Calibration | None,
        tick: Callable[[], None] = lambda: None,
    ) -> Cap:
        """Find the biases that keep every contributor to a share of a probe, as `router.model.cap.fit_cap`.

        Args:
            inputs: What is asked; a text may be its own target.
            targets: One for each input.
            allowed: How much anybody may take.
            calibration: What the release adds to scores beside the cap.
            tick: Called between two steps; what it raises ends the fit.
        """
        pool, settings = self.generation.pool.calibrated(calibration), self.generation.settings
        probe = Probe(encode_pairs(self.base, inputs, targets), tick)
        with memory_watched():
            return fit_cap(self.features, self._scores, pool, settings, allowed, probe)

    def find_alike(
        self, digest: str, inputs: Sequence[Input], targets: Sequence[str], tick: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Say how much like one expert the others choose, by digest, as `router.model.cap.find_alike`.

        Args:
            digest: The expert's bundle.
            inputs: What is asked; a text may be its own target.
            targets: One for each input.
            tick: Called between two steps; what it raises ends the look.
        """
        probe, digests = Probe(encode_pairs(self.base, inputs, targets), tick), self.digests
        with memory_watched():
            alike = find_alike(
                self.features, self._scores, self.generation.pool, self.generation.settings.method, probe
            )
        mine = alike[digests.index(digest)].tolist()
        return {other: share for other, share in zip(digests, mine, strict=True) if other != digest}

    @cached_property
    def _base_norms(self) -> dict[str, float]:
        return base_norms(self._linears, self.base.source, self._cache)

    def _use(self, pool: ExpertPool) -> None:
        """Answer with a pool that was changed by hand, and so is no release any more."""
        if pool is not self.generation.pool:
            self.generation = replace(self.generation, pool=pool, release=0, expires=None)

    def take_up(self, mirror: Mirror) -> None:
        """Go over to a release: load what is new, drop what is gone, leave the rest alone.

        The releases before it, up to `router.model.releases.KEPT` in all as a rule, stay at hand.

        Raises:
            Refused: As `load`, or what the release's own method refuses; the model then stays as it was.
            Unavailable: `MEMORY_FULL`; likewise.
        """
        with self._changing, memory_watched():
            release = mirror.release.spec
            wanted = [(entry.bundle, entry.name, entry.contributor) for entry in release.experts]
            pool = self.held.nearest(wanted)
            held = set(map(listing, pool.experts))
            new = [each for each in zip(wanted, mirror.bundles, strict=True) if each[0] not in held]
            for digest, _, _ in held.difference(wanted):
                pool = pool.remove(digest)
            check_room([bundle for _, bundle in new], pool, self.places, self.base.model.dtype)
            for (_, name, contributor), bundle in bar(new, "Loading experts"):
                pool = pool.add(self.load(bundle, name=name, contributor=contributor))
            pool = pool.reordered([digest for digest, _, _ in wanted]).calibrated(mirror.calibration)
            public = self.features.mixtures.public
            told = public.told
            public.follow(mirror.statistics)
            try:
                resolve(release.routing.method, MethodContext(pool, k=release.routing.k, features=self.features))
            except Refused:
                public.follow(told)
                raise
            expires = read_timestamp(release.expires)
            self.held = self.held.followed_by(Generation(pool, release.routing, release.number, expires))
