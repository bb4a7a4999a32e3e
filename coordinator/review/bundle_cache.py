"""Bundles as folders, out of the store, for whoever loads them."""

import shutil
from pathlib import Path

from coordinator.registry.tables import BundleRow
from coordinator.storage.blobs import Store
from protocol.bundle import ENVELOPE, Bundle, open_bundle, read_manifest
from protocol.errors import Code, GreylagError, Unavailable
from protocol.spec import StatisticsFile


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
            Unavailable: `STORE_DAMAGED` if the store lost or changed bytes, `STORAGE_FULL` if there is no room:
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
                Code.STORE_DAMAGED,
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

    def statistics(self, file: StatisticsFile | None) -> Path | None:
        """Return the pool's own file, under its digest; None where there is none, or where the store lost it."""
        if file is None:
            return None
        place = self._folder / f"statistics-{file.sha256[:16]}" / file.sha256
        if not place.is_file():
            place.parent.mkdir(exist_ok=True)
            (making := place.with_name(".making")).unlink(missing_ok=True)
            try:
                self._store.copy_to(file.sha256, making)
            except OSError:
                return None  # the model works it out
            making.rename(place)
        return place

    def drop(self, digest: str) -> None:
        """Delete the folder of a bundle that is not needed any more."""
        shutil.rmtree(self._folder / digest, ignore_errors=True)
