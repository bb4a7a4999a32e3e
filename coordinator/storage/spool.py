"""Files on their way in: one folder an upload, one file a bundle's file; its length is the offset."""

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from coordinator.faults import fault_point
from protocol.bundle import SignedFile
from protocol.errors import Code, Unavailable


class Spool:
    """A folder of unfinished uploads.

    Args:
        folder: Made if it is missing.
        quota_bytes: Most that all uploads may hold, in bytes.
        floor_bytes: Disk space that uploads leave free, in bytes.
        free_bytes: Tells the free space of the disk that a folder lies on, in bytes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        quota_bytes: int,
        floor_bytes: int,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._quota, self._floor, self._free = folder, quota_bytes, floor_bytes, free_bytes

    def check_room(self, more_bytes: int) -> None:
        """Refuse what does not fit beside all that lies here; what is only declared takes none (`STORAGE_FULL`)."""
        held = sum(max(_size(path), 0) for path in self._folder.glob("*/*"))
        if held + more_bytes > self._quota or self._free(self._folder) - more_bytes < self._floor:
            raise Unavailable(Code.STORAGE_FULL, "The coordinator has no room for this now.", "Submit again later.")

    def make(self, digest: str, files: Mapping[str, SignedFile]) -> None:
        """Make the folder and the empty files of an upload; what is there stays."""
        (self._folder / digest).mkdir(exist_ok=True)
        for name in files:
            self.path(digest, name).touch()

    def path(self, digest: str, name: str) -> Path:
        """Where a file of an upload lies."""
        return self._folder / digest / name

    def missing(self, digest: str, files: Mapping[str, SignedFile]) -> dict[str, int]:
        """Offsets in bytes at which files that are not complete continue, by name."""
        sizes = {name: _size(self.path(digest, name)) for name in files}
        return {name: max(size, 0) for name, size in sizes.items() if size != files[name].size}

    def held(self, digest: str, files: Iterable[str]) -> int:
        """How much of an upload lies here, in bytes."""
        return sum(max(_size(self.path(digest, name)), 0) for name in files)

    def append(self, digest: str, name: str, size: int) -> "Appender":
        """Open a file of an upload at its end, if there is room for the rest of its `size` bytes (`STORAGE_FULL`)."""
        self.check_room(size - self.held(digest, [name]))
        return Appender(self.path(digest, name))

    def drop_file(self, digest: str, name: str) -> None:
        """Forget the bytes of one file, so that it starts again."""
        path = self.path(digest, name)
        path.unlink(missing_ok=True)
        path.touch()

    def drop(self, digest: str) -> None:
        """Forget an upload."""
        shutil.rmtree(self._folder / digest, ignore_errors=True)

    def sweep(self, keep: set[str]) -> None:
        """Drop every upload that is not among those to keep."""
        for entry in self._folder.iterdir():
            if entry.name not in keep:
                self.drop(entry.name)


class Appender:
    """The one writer of a spool file. Its calls may come from any thread, also while it is being closed."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.offset = os.fstat(self._descriptor).st_size
        """Bytes that the file has."""

    def write(self, data: bytes) -> None:
        """Append; of data that does not fit, as much as fits stays (`STORAGE_FULL`)."""
        rest = memoryview(data)
        with self._open() as descriptor:
            while rest and descriptor is not None:
                written = os.write(descriptor, rest)
                self.offset += written
                rest = rest[written:]

    def sync(self) -> None:
        """Wait until the bytes are on the disk (`STORAGE_FULL`)."""
        with self._open() as descriptor:
            if descriptor is not None:
                os.fsync(descriptor)
        fault_point("spool-synced")

    def close(self) -> None:
        """Stop writing; safe to call twice."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    @contextmanager
    def _open(self) -> Iterator[int | None]:
        """Hand out the descriptor, None if the stream broke while this call waited for its thread."""
        with self._lock:
            try:
                yield self._descriptor
            except OSError as error:
                what = f"The coordinator cannot store more: {os.strerror(error.errno or 0)}."
                raise Unavailable(
                    Code.STORAGE_FULL, what, "Submit again later; it continues where it stopped."
                ) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
