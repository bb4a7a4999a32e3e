"""Bytes by their sha256, behind fsspec: a folder by default, any object store by URL.

What lies under a digest is whole or not there. On a local file system `put` also survives a power
cut once it has returned: the file is synced, renamed into place, and its folder synced.
"""

import hashlib
import math
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from coordinator.faults import fault_point
from protocol.errors import Code, Refused, Unavailable
from protocol.files.atomic import sync
from protocol.statement import is_sha256

_TEMPORARY = ".incoming-"
_BELIEVED_S, _MOST_VERIFIED = 3600.0, 1 << 14
"""How long, and of how many files, it is remembered that they were found whole."""


class Store:
    """A content-addressed store at an fsspec URL or a path (`SETTINGS_INVALID` if it cannot be used)."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
            self._fs.makedirs(self._root, exist_ok=True)
        except (ImportError, OSError, ValueError) as error:
            what = f"The store {url!r} cannot be used: {error}."
            raise Refused(Code.SETTINGS_INVALID, what, "Correct the setting `store`.") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        self._verified: dict[object, float] = {}

    def put(self, path: Path, sha256: str) -> None:
        """Keep a file whose digest was checked, and whose bytes must not change afterwards (`STORAGE_FULL`)."""
        try:
            if self._local:
                self._put_local(path, sha256)
            else:
                temporary = f"{self._root}/{_TEMPORARY}{uuid.uuid4().hex}"
                self._fs.put_file(str(path), temporary)
                self._fs.mv(temporary, self._key(sha256))
        except OSError as error:
            what = f"The store cannot take more: {error.strerror or error}."
            raise Unavailable(Code.STORAGE_FULL, what, "Try again later.") from error

    def open(self, sha256: str, offset: int = 0) -> IO[bytes]:
        """Open a file for reading at an offset in bytes; `FileNotFoundError` if nothing lies under the digest."""
        file: IO[bytes] = self._fs.open(self._key(sha256), "rb")
        file.seek(offset)
        return file

    def verify(self, sha256: str) -> bool:
        """Tell whether the bytes under a digest are there, can be read, and have that digest."""
        try:
            with self.open(sha256) as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256  # type: ignore[arg-type] # as fsspec's
        except OSError:
            return False

    def is_whole(self, sha256: str) -> bool:
        """As `verify`; a good verdict holds for an hour, unless size or time of a local file change."""
        try:
            status = Path(self._key(sha256)).stat() if self._local else None
        except OSError:
            return False
        seen = sha256, status and (status.st_size, status.st_mtime_ns)
        now = time.monotonic()
        if now - self._verified.get(seen, -math.inf) < _BELIEVED_S:
            return True
        whole = self.verify(sha256)
        if whole:
            self._verified.pop(seen, None)
            self._verified[seen] = now
            if len(self._verified) > _MOST_VERIFIED:
                del self._verified[next(iter(self._verified))]
        return whole

    def copy_to(self, sha256: str, target: Path) -> None:
        """Bring a file to a local path, by hard link where that works; `FileNotFoundError` as for `open`."""
        if self._local:
            _link_or_copy(Path(self._key(sha256)), target)
        else:
            self._fs.get_file(self._key(sha256), str(target))

    def digests(self) -> Iterator[str]:
        """Walk over every digest that something lies under."""
        for path in self._fs.find(self._root):
            if is_sha256(name := path.rpartition("/")[2]):
                yield name

    def kept_since(self, sha256: str) -> datetime:
        """When a file came to lie here, a copy of the store being new; `FileNotFoundError` as for `open`."""
        if self._local:
            return datetime.fromtimestamp(Path(self._key(sha256)).stat().st_ctime, UTC)
        modified: datetime = self._fs.modified(self._key(sha256))
        return modified.astimezone(UTC)

    def remove(self, sha256: str) -> bool:
        """Drop a file that nothing needs, and tell whether it went."""
        with suppress(OSError):
            self._fs.rm_file(self._key(sha256))
            return True
        return False

    def sweep_leftovers(self) -> None:
        """Drop what interrupted calls of `put` left."""
        for path in self._fs.find(self._root):
            if path.rpartition("/")[2].startswith(_TEMPORARY):
                with suppress(OSError):  # whatever this one has, the others can go
                    self._fs.rm_file(path)

    def _key(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"

    def _put_local(self, path: Path, sha256: str) -> None:
        final = Path(self._key(sha256))
        temporary = Path(self._root) / f"{_TEMPORARY}{uuid.uuid4().hex}"
        final.parent.mkdir(exist_ok=True)
        try:
            _link_or_copy(path, temporary)
            sync(temporary)
            fault_point("blob-linked")
            # Also over a file that is there already: these bytes were just checked, those were not.
            temporary.replace(final)
            fault_point("blob-renamed")
        finally:
            temporary.unlink(missing_ok=True)  # renaming one link of a file over another leaves both
        sync(final.parent)
        sync(Path(self._root))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
