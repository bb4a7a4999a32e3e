"""How a router speaks to a coordinator: whom it trusts, how long it waits, and the folder that it fills meanwhile."""

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NoReturn, TypedDict

from filelock import FileLock, Timeout

from protocol.errors import Code, Refused, Unavailable
from protocol.log.reader import Quorum
from protocol.signing import PublicKey
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.v1.log_pb2_grpc import LogStub
from protocol.wire.grpc_client import connect
from router.base.progress import byte_bar
from router.follow.workspace import BUNDLES, LOCK, RELEASES

if TYPE_CHECKING:
    from tqdm import tqdm

PULL_DEADLINE_S = 3600.0
"""Longest that a whole pull may take, in seconds; what came stays, so a pool that needs longer takes several."""
_log = logging.getLogger(__name__)


class Contact(TypedDict, total=False):
    """How a coordinator is spoken to."""

    ca: Path | None
    """Its CA certificate, PEM."""
    quorum: Quorum
    """Who must have signed for a release beside the coordinator; nobody unless given."""
    pool_key: PublicKey | None
    """The key that must sign the pool; without one, the key pinned at the first pull."""
    root: str | None
    """Fingerprint of the pool's first root; without one, the root that the pool's key signed is trusted."""
    on_bytes: Callable[[int], None]
    """Called with the size of every chunk that arrives."""
    deadline_s: float
    """Longest that the pull may take, in seconds, but for waiting its turn; default `PULL_DEADLINE_S`."""
    say: Callable[[str], None]
    """Told which key is trusted on first use, and that another pull is waited for; without one, both are logged."""


@dataclass(frozen=True)
class Source:
    """Where files come from, and go to."""

    folder: Path
    catalog: CatalogStub
    log: LogStub
    address: str
    """The coordinator, for people."""
    contact: Contact
    bar: "tqdm[NoReturn]"
    """How far all files are, in bytes."""
    until: float
    """When the pull is given up, on the monotonic clock, in seconds."""

    def left(self, most_s: float) -> float:
        """Return how long a call may take, in seconds; every call asks, so that no number of them lasts for ever."""
        if (left_s := self.until - monotonic()) <= 0:
            what = f"{self.address} did not send everything in the time that a pull has."
            raise Unavailable(Code.UNREACHABLE, what, "Pull again; files continue.")
        return min(most_s, left_s)

    def say(self, sentence: str) -> None:
        """Tell whoever started the pull."""
        self.contact.get("say", _log.warning)(sentence)

    def count(self, arrived: int) -> None:
        """Count bytes that arrived."""
        self.bar.update(arrived)
        if on_bytes := self.contact.get("on_bytes"):
            on_bytes(arrived)


@contextmanager
def reach(folder: Path, address: str, contact: Contact) -> Iterator[Source]:
    """Connect to a coordinator with the folder locked, and say in words what a disk would not take."""
    if unknown := contact.keys() - Contact.__annotations__.keys():  # one misspelt would trust whoever answers
        raise TypeError(f"Nobody knows the keyword {min(unknown)}.")
    lock = FileLock(folder / LOCK)
    try:
        with connect(address, contact.get("ca")) as channel:
            for name in (BUNDLES, RELEASES):
                (folder / name).mkdir(parents=True, exist_ok=True)
            with byte_bar("Fetching") as bar:
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    contact.get("say", _log.warning)(f"Another pull works in {folder}; waiting for it.")
                    lock.acquire()
                try:
                    until = monotonic() + contact.get("deadline_s", PULL_DEADLINE_S)
                    yield Source(folder, CatalogStub(channel), LogStub(channel), address, contact, bar, until)
                finally:
                    lock.release()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(
                Code.STORAGE_FULL,
                f"The disk that holds {folder} is full.",
                "Make room; the pull continues where it is.",
            ) from error
        raise Refused(Code.SETTINGS_INVALID, f"{folder}: {error.strerror}.", "Choose another folder.") from error
