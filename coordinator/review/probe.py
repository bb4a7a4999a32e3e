"""What only the model can tell: do the experts, put together, still compute?"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from coordinator.registry.registry import Registry
from coordinator.registry.tables import BundleRow
from coordinator.storage.blobs import Store
from protocol.bundle import ENVELOPE, Bundle, open_bundle, read_manifest
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


class Cache:
    """Bundle folders, rebuilt from the store; every byte is checked again.

    Args:
        folder: Where they go; may be deleted at any time.
        store: Where the bytes are.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._store = folder, store

    def open(self, row: BundleRow) -> Bundle:
        """Return a bundle as a folder.

        Raises:
            Unavailable: `DIGEST_MISMATCH` if the store lost or changed bytes, `STORAGE_FULL` if there is no room:
                not the contributor's fault.
        """
        folder = self._folder / row.digest
        try:
            return open_bundle(folder)
        except (GreylagError, OSError):
            shutil.rmtree(folder, ignore_errors=True)  # incomplete, or touched: build it again
        making = self._folder / f".{row.digest}"
        shutil.rmtree(making, ignore_errors=True)
        try:
            making.mkdir()
            for name, file in read_manifest(row.envelope).files.items():
                self._store.copy_to(file.sha256, making / name)
            (making / ENVELOPE).write_bytes(row.envelope)
            making.rename(folder)
            return open_bundle(folder)
        except (GreylagError, FileNotFoundError) as error:
            raise Unavailable(
                Code.DIGEST_MISMATCH,
                f"The store lost or changed bytes of bundle {row.digest[:16]}.",
                "Run: greylag-coordinator fsck",
            ) from error
        except OSError as error:
            raise Unavailable(
                Code.STORAGE_FULL,
                f"No folder can be made of bundle {row.digest[:16]}: {error.strerror}.",
                "Make room; the worker tries again.",
            ) from error
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def drop(self, digest: str) -> None:
        """Delete the folder of a bundle that is not needed any more."""
        shutil.rmtree(self._folder / digest, ignore_errors=True)


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
            raise Unavailable(error.code, error.message, error.hint) from error
        try:
            model.append(self._open(new.bundle), name=new.name, contributor=new.contributor)
            return model.probe(self._probe)
        except GreylagError:
            if new.bundle in model.digests:
                model.remove(new.bundle)
            raise

    def _open(self, digest: str) -> Bundle:
        row = self._registry.bundle(digest)
        if row is None:
            raise Unavailable(Code.BUNDLE_UNKNOWN, f"The registry lost bundle {digest[:16]}.", "Restore the registry.")
        return self._cache.open(row)
