"""Which release is the newest, by the word of the pool's roles: python-tuf's client over our own call.

What was seen of the roles lies in the folder `trusted`, as python-tuf keeps it, and outlives every pull.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
from tuf.api import exceptions
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from protocol.documents import Pool, timestamp
from protocol.errors import Code, GreylagError, Refused
from protocol.files import strict_json
from protocol.roles.metadata import Named, check_dates, check_first, check_root, named, read
from protocol.v1 import catalog_pb2
from protocol.wire.grpc_client import DEADLINE_S
from protocol.wire.grpc_status import from_rpc_error
from router.follow.source import Source
from router.follow.workspace import TRUSTED

_CONFIG = UpdaterConfig(max_delegations=0, root_max_length=1 << 16, snapshot_max_length=1 << 14)
"""The pool's roles delegate to nobody, and the targets' length stands in the snapshot."""
_ROLES: dict[str, Any] = {role.type: role for role in (Root, Targets, Snapshot, Timestamp)}
_FIRST = Path("root_history", "1.root.json")
_HINT = "The coordinator may show an old state to some; ask the operator."
_CODES = {
    exceptions.ExpiredMetadataError: (Code.RELEASE_EXPIRED, "Check the clock, then ask the operator what is wrong."),
    exceptions.BadVersionNumberError: (Code.RELEASE_ROLLBACK, _HINT),
    exceptions.UnsignedMetadataError: (Code.BAD_SIGNATURE, _HINT),
    exceptions.LengthOrHashMismatchError: (Code.DIGEST_MISMATCH, _HINT),
    exceptions.DownloadLengthMismatchError: (Code.SIZE_MISMATCH, _HINT),
}


def find_newest(source: Source, pool: Pool, *, now: datetime) -> Named:
    """Ask for metadata until the newest release is known, and believe nothing that the roles did not sign.

    Raises:
        Refused: `RELEASE_UNKNOWN` before the first release, `RELEASE_EXPIRED` for old metadata, which a coordinator
            shows who hides something, `RELEASE_ROLLBACK`, `BAD_SIGNATURE`, `DIGEST_MISMATCH` for metadata of different
            times, `SIZE_MISMATCH` for what has no end, `RELEASE_DATES`, `UNTRUSTED`, or any code of metadata.
        Unavailable: `UNREACHABLE`.
    """
    folder, fetcher = source.folder / TRUSTED, _Fetcher(source, pool, now)
    with _told(now):
        kept = folder / _FIRST
        first = kept.read_bytes() if kept.is_file() else fetcher.download_bytes("1.root.json", _CONFIG.root_max_length)
        check_first(read(first, Root), pool, source.contact.get("root"))
        folder.mkdir(exist_ok=True)
        updater = Updater(str(folder), "", fetcher=fetcher, config=_CONFIG, bootstrap=first)
        updater.refresh()
    return named(read((folder / f"{Targets.type}.json").read_bytes(), Targets).signed)


class _Fetcher(FetcherInterface):
    """Fetches metadata by calls of the catalogue; a name is `ROLE.json` or `VERSION.ROLE.json`.

    What python-tuf would let pass is refused here, before it is kept.
    """

    def __init__(self, source: Source, pool: Pool, now: datetime) -> None:
        self._source, self._pool, self._now = source, pool, now

    def _fetch(self, url: str) -> Iterator[bytes]:
        version, _, role = url.removeprefix("/").removesuffix(".json").rpartition(".")
        request = catalog_pb2.GetMetadataRequest(role=role, version=int(version or 0))
        try:
            raw = self._source.catalog.GetMetadata(request, timeout=self._source.left(DEADLINE_S)).metadata
        except grpc.RpcError as error:
            told = from_rpc_error(error, self._source.address)
            if role == Root.type and request.version > 1 and told.code is Code.RELEASE_UNKNOWN:
                raise exceptions.DownloadHTTPError("no newer root", 404) from error
            raise told from error
        if len(raw) <= strict_json.MAX_BYTES:  # what is larger, python-tuf refuses by its length
            part = read(raw, _ROLES[role]).signed
            check_dates([part], now=self._now)
            if isinstance(part, Root):
                check_root(part, self._pool)
        return iter((raw,))


@contextmanager
def _told(now: datetime) -> Iterator[None]:
    """Say in codes of ours what python-tuf refuses."""
    try:
        yield
    except (exceptions.RepositoryError, exceptions.DownloadError) as error:
        if isinstance(error.__cause__, GreylagError):
            raise error.__cause__ from error
        code, hint = next(
            (told for kind, told in _CODES.items() if isinstance(error, kind)), (Code.SPEC_INVALID, _HINT)
        )
        what = f"The pool's roles do not vouch for what the coordinator shows: {error}"
        raise Refused(code, f"{what}; this machine's clock says {timestamp(now)}.", hint) from error
