"""Files on their way in: one folder an upload, one file a bundle's file; its length is the offset."""

import os
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from coordinator.faults import fault_point
from protocol.bundle import SignedFile
from protocol.errors import Code, Unavailable


class Spool:
    """A folder of unfinished uploads; one object at a time owns it, and knows by heart what lies there.

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
        self._lock = threading.RLock()  # held for moments: event loops wait for it
        self._writers: set[Appender] = set()
        self._kept: set[str] = set()
        self._aside: list[Path] = []
        # Bytes by upload: what lies here, and of a file that is being written all that it may get.
        self._held = Counter[str]()
        for path in folder.glob("*/*"):
            self._held[path.parent.name] += max(_size(path), 0)

    def check_room(self, more_bytes: int) -> None:
        """Refuse what does not fit beside what lies here or is being written (`STORAGE_FULL`); no other claims room."""
        with self._lock:
            coming = sum(writer.size - writer.offset for writer in self._writers)
            held = sum(self._held.values())
        if held + more_bytes > self._quota or self._free(self._folder) - coming - more_bytes < self._floor:
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

    def held(self, digest: str) -> int:
        """How much of an upload lies here or is being written, in bytes."""
        return self._held[digest]

    def append(self, digest: str, name: str, size: int) -> "Appender":
        """Open a file of an upload at its end, if there is room for the rest of its `size` bytes (`STORAGE_FULL`)."""
        with self._lock:
            self.check_room(size - max(_size(self.path(digest, name)), 0))
            writer = Appender(self.path(digest, name), size, self._closed)
            self._writers.add(writer)
            self._held[digest] += size - writer.offset
            return writer

    def drop_file(self, digest: str, name: str) -> None:
        """Forget the bytes of one file, so that it starts again."""
        path = self.path(digest, name)
        with self._lock:
            self._held[digest] -= max(_size(path), 0)
            path.unlink(missing_ok=True)
            path.touch()

    @contextmanager
    def kept(self, digest: str) -> Iterator[None]:
        """Let nobody drop an upload meanwhile, so that the bytes that were checked are those that are kept."""
        with self._lock:
            self._kept.add(digest)
        try:
            yield
        finally:
            self._kept.remove(digest)

    def drop(self, digest: str) -> bool:
        """Put an upload aside until `clear`, unless it is kept or written just now; tell whether it is gone."""
        with self._lock:
            if digest in self._kept or any(writer.path.parent.name == digest for writer in self._writers):
                return False
            with suppress(FileNotFoundError):
                self._aside.append((self._folder / digest).rename(self._folder / f".dropped-{secrets.token_hex(16)}"))
            self._held.pop(digest, None)
            return True

    def clear(self) -> None:
        """Delete the bytes that lie aside."""
        with self._lock:
            aside, self._aside = self._aside, []
        for folder in aside:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, keep: set[str]) -> None:
        """Drop every upload that is not among those to keep, and delete what lies aside."""
        for entry in list(self._folder.iterdir()):
            if entry.name not in keep:
                self.drop(entry.name)
        self.clear()

    def _closed(self, writer: "Appender") -> None:
        with self._lock:
            self._writers.remove(writer)
            self._held[writer.path.parent.name] -= writer.size - writer.offset


class Appender:
    """The one writer of a spool file of `size` bytes. Its calls may come from any thread, also while it is closed."""

    def __init__(self, path: Path, size: int, on_close: Callable[["Appender"], None]) -> None:
        self._lock, self.path, self.size, self._on_close = threading.Lock(), path, size, on_close
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
                self._on_close(self)

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
