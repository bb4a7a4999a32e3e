"""Follows a pool's roots, each signed by enough keys of the one before, to whose keys have the coordinator's duties.

Whoever reads what the coordinator signs keeps the roots in a folder, as VERSION.json. python-tuf's client follows them
too, for releases; here they serve those who take none: contributors and witnesses.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import grpc
from tuf.api.metadata import Metadata, Root

from protocol.documents import Pool, timestamp
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.roles.metadata import check_dates, check_first, check_root, duties_of, is_signed, read
from protocol.v1.catalog_pb2 import GetMetadataRequest
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.wire.grpc_client import DEADLINE_S
from protocol.wire.grpc_status import from_rpc_error

MOST_ROOTS = 1024
"""Roots that are followed: one a year, and one more for each key that was replaced."""


def with_duties(pool: Pool, folder: Path) -> Pool:
    """Say of a pool whose keys have the coordinator's duties, by the roots in a folder; the pool's key without any.

    Raises:
        Refused: A code of a root that is damaged.
    """
    try:
        return _told(pool, _follow(pool, _kept(folder)))
    except Refused as error:
        hint = "Restore it from a copy, or remove it to have the roots fetched again."
        raise Refused(error.code, f"{folder} is damaged: {error.message}", hint) from error


def keep_up(
    pool: Pool,
    folder: Path,
    catalog: CatalogStub,
    *,
    now: datetime,
    first: str | None = None,
    deadline_s: Callable[[float], float] = lambda most: most,
) -> Pool:
    """Fetch the roots that a folder lacks, keep them, and say whose keys have the coordinator's duties.

    Args:
        pool: The pool.
        folder: Where its roots are kept.
        catalog: Speaks to the coordinator.
        now: The time.
        first: The first root's fingerprint, as a person was told it.
        deadline_s: Says how long a call may take, of a number of seconds at most.

    Raises:
        Refused: `RELEASE_EXPIRED` where the newest root has ended, `BAD_SIGNATURE`, or any code of a root.
        Unavailable: `UNREACHABLE` or `BUSY`.
    """
    roots = list(_follow(pool, _kept(folder), first))
    while len(roots) < MOST_ROOTS:
        request = GetMetadataRequest(role=Root.type, version=len(roots) + 1)
        try:
            raw = catalog.GetMetadata(request, timeout=deadline_s(DEADLINE_S)).metadata
        except grpc.RpcError as error:
            if from_rpc_error(error, "The coordinator").code is Code.RELEASE_UNKNOWN:
                break
            raise
        roots = list(_follow(pool, [*roots, read(raw, Root)], first))
        check_dates([roots[-1].signed], now=now)
        write_whole(folder / f"{len(roots)}.json", raw)
    if roots and roots[-1].signed.is_expired(now):
        raise Refused(
            Code.RELEASE_EXPIRED,
            f"The pool's root ended at {timestamp(roots[-1].signed.expires)}; this machine's clock says "
            f"{timestamp(now)}.",
            "Check the clock, then ask the operator for a new root: newer keys may be kept from this machine.",
        )
    return _told(pool, roots)


def _kept(folder: Path) -> Iterator[Metadata[Root]]:
    for version in range(1, MOST_ROOTS + 1):
        if not (path := folder / f"{version}.json").is_file():
            return
        yield read(path.read_bytes(), Root)


def _follow(pool: Pool, roots: Iterable[Metadata[Root]], first: str | None = None) -> Iterator[Metadata[Root]]:
    """Refuse a root that does not follow the one before, or a first one that the pool's key has not signed."""
    before: Metadata[Root] | None = None
    for root in roots:
        if before is None:
            check_first(root, pool, first)
        else:
            check_root(root.signed, pool)
            if root.signed.version != before.signed.version + 1:
                what = f"Root {root.signed.version} was sent for root {before.signed.version + 1}."
                raise Refused(Code.SPEC_INVALID, what, "Tell the pool's operator.")
            if not (is_signed(root, before.signed) and is_signed(root, root.signed)):
                what = f"Root {root.signed.version} lacks signatures: its own keys', or those of the root before."
                raise Refused(Code.BAD_SIGNATURE, what, "Tell the pool's operator.")
        yield root
        before = root


def _told(pool: Pool, roots: Iterable[Metadata[Root]]) -> Pool:
    found = (duties_of(root.signed) for root in roots)
    return replace(pool, duties=tuple(each for each in found if each is not None))
