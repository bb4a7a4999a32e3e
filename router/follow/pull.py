"""Bring a pool's newest release onto this machine: only what is missing, checked byte by byte.

What lies where: `router.follow.workspace`.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

from protocol.bundle import ENVELOPE, Bundle, Manifest, SignedFile, open_bundle, read_manifest
from protocol.compatibility import check_fit, check_tensors
from protocol.documents import Pool, read_pool
from protocol.errors import Code, GreylagError, Refused
from protocol.files.atomic import sync, write_whole
from protocol.log.checkpoint import read_checkpoint
from protocol.log.reader import NO_WITNESSES, LogReader
from protocol.release import CalibrationFile, Release, check_fresh, read_candidate, read_release
from protocol.roles.chain import keep_up
from protocol.signing import PublicKey
from protocol.v1 import catalog_pb2
from protocol.v1.log_pb2_grpc import LogStub
from protocol.wire.grpc_client import DEADLINE_S
from router.base.fingerprint import check_base
from router.follow.newest import find_newest
from router.follow.source import Contact, Source, reach
from router.follow.transfer import pull_beside, pull_file
from router.follow.workspace import (
    BUNDLES,
    CALIBRATIONS,
    CHECKPOINT,
    FINGERPRINT,
    POOL,
    RELEASE,
    ROOTS,
    STATISTICS,
    Mirror,
    assemble,
    kept,
    listed_files,
    open_listed,
)
from router.pool.calibration import Calibration
from router.pool.expert import check_finite

_LOST = (Code.BUNDLE_UNKNOWN, Code.STORE_DAMAGED)


def pull(
    folder: Path,
    address: str,
    *,
    base: str | None = None,
    held: Mirror | None = None,
    on_release: Callable[[Release], None] = lambda _: None,
    take_up: Callable[[Mirror], object] = lambda _: None,
    **contact: Unpack[Contact],
) -> Mirror:
    """Fetch the newest release into a folder.

    A broken pull leaves what arrived and continues there the next time; the release that was there
    before stays in use until the new one is whole and taken up. Of two pulls in one folder one waits for the other.

    Args:
        folder: Where releases are kept; made if it is missing.
        address: The coordinator, `host:port`.
        base: The base model that the pool must be for: folder or Hub id.
        held: What an earlier pull returned: its bundles are not read again.
        on_release: Told what is offered, before more of it is fetched or checked; may raise.
        take_up: Given a new release that came whole; where it raises, the folder's newest stays what it was, so that
            nobody who starts from the disk meets what could not be used.
        contact: How the coordinator is spoken to.

    Raises:
        Refused: `UNTRUSTED`, `BASE_MISMATCH`, `RELEASE_UNKNOWN` before the first release, any code of
            `router.follow.newest.find_newest`, `protocol.release.check_fresh` or `protocol.log.reader.LogReader`, or of
            a document or bundle.
        Unavailable: `UNREACHABLE`, `STORAGE_FULL`, `LOG_UNWITNESSED`.
    """
    with reach(folder, address, contact) as source:
        pool = _pull_pool(source)
        if base is not None:
            check_base(base, pool.spec.base, folder / FINGERPRINT)
        release = _find_release(source, pool)
        on_release(release)

        def earlier(number: int) -> Release:
            wanted = catalog_pb2.GetReleaseRequest(number=number)
            return read_release(source.catalog.GetRelease(wanted, timeout=source.left(DEADLINE_S)).envelope, pool)

        newest = folder / RELEASE
        there = read_release(newest.read_bytes(), pool) if newest.exists() else None
        used = [each for each in (there, held.release if held else None) if each]
        seen = max(used, key=lambda each: each.spec.number, default=None)
        check_fresh(release, pool, seen=seen, now=datetime.now(UTC), earlier=earlier)
        _check_logged(source, pool, release)
        if held is None or held.release.digest != release.digest:
            held, there = _pull_mirror(source, pool, release, held), None
            take_up(held)
        if there is None or there.digest != release.digest:
            write_whole(kept(folder, release.spec.number), release.envelope)
            write_whole(newest, release.envelope)
    return held


def pull_exactly(
    folder: Path, address: str, digest: str, *, released: bool = False, **contact: Unpack[Contact]
) -> Mirror:
    """Fetch a candidate, or a release of any age, to be tried: it never becomes what `pull` or `open_mirror` return.

    Args:
        folder: As for `pull`, which may use the same one: bundles are fetched once.
        address: The coordinator, `host:port`.
        digest: The candidate or release.
        released: Whether it is a release.
        contact: As for `pull`.

    Raises:
        Refused: `CANDIDATE_UNKNOWN`, `DIGEST_MISMATCH`, or any code of a document or bundle.
        Unavailable: `UNREACHABLE`, `STORAGE_FULL`.
    """
    with reach(folder, address, contact) as source:
        pool = _pull_pool(source)
        request = catalog_pb2.GetReleaseRequest(candidate=digest)
        envelope = source.catalog.GetRelease(request, timeout=source.left(DEADLINE_S)).envelope
        candidate = (read_release if released else read_candidate)(envelope, pool)
        if (sent := candidate.digest) != digest:
            raise Refused(Code.DIGEST_MISMATCH, f"{address} sent the list {sent[:16]}.", "Tell the pool's operator.")
        return _pull_mirror(source, pool, candidate, None)


def pull_calibration(
    folder: Path, address: str, file: CalibrationFile, *, ca: Path | None, on_bytes: Callable[[int], None]
) -> Calibration:
    """Fetch biases and temperatures that no release holds yet; arguments as for `pull_exactly`.

    Raises:
        Refused: `BUNDLE_UNKNOWN`, `DIGEST_MISMATCH`, or as `router.pool.calibration.Calibration.load`.
        Unavailable: `UNREACHABLE`, `STORAGE_FULL`.
    """
    with reach(folder, address, {"ca": ca, "on_bytes": on_bytes}) as source:
        path = folder / CALIBRATIONS / file.sha256
        pull_beside(path, source, SignedFile(file.sha256, file.size))
        return Calibration.load(path.read_bytes())


@contextmanager
def reach_log(folder: Path, address: str, contact: Contact) -> Iterator[tuple[LogReader, LogStub]]:
    """Look at a pool's log; arguments as for `pull`.

    Raises:
        Refused: As `protocol.log.reader.LogReader`, or any code of the pool.
        Unavailable: `UNREACHABLE`.
    """
    with reach(folder, address, contact) as source:
        yield LogReader(source.log, _pull_pool(source), folder / CHECKPOINT), source.log


def _pull_pool(source: Source) -> Pool:
    """Fetch the pool, and whose keys have its coordinator's duties."""
    pool, now, first = _pinned_pool(source), datetime.now(UTC), source.contact.get("root")
    return keep_up(pool, source.folder / ROOTS, source.catalog, now=now, first=first, deadline_s=source.left)


def _pinned_pool(source: Source) -> Pool:
    envelope = source.catalog.GetPool(catalog_pb2.GetPoolRequest(), timeout=source.left(DEADLINE_S)).envelope
    path, key = source.folder / POOL, source.contact.get("pool_key")
    if not path.exists():
        pool = read_pool(envelope, key)
        write_whole(path, envelope)
        if key is None:
            source.say(f"Trusting the pool's key {pool.spec.coordinator} on first use; compare it with the operator's.")
        return pool
    pinned = read_pool(path.read_bytes())
    pool = read_pool(envelope, key or PublicKey.from_hex(pinned.spec.coordinator))
    if pool.digest != pinned.digest:
        raise Refused(
            Code.WRONG_POOL,
            f"The coordinator serves pool {pool.spec.name}, digest {pool.digest[:16]}; this folder follows "
            f"{pinned.spec.name}, digest {pinned.digest[:16]}.",
            "Use another folder for another pool.",
        )
    return pool


def _find_release(source: Source, pool: Pool) -> Release:
    """Fetch the release that the pool's roles name as the newest."""
    named = find_newest(source, pool, now=datetime.now(UTC))
    wanted = catalog_pb2.GetReleaseRequest(number=named.number)
    envelope = source.catalog.GetRelease(wanted, timeout=source.left(DEADLINE_S)).envelope
    named.check(envelope)
    release = read_release(envelope, pool)
    if release.spec.number != named.number:
        what = f"What is signed for as release {named.number} is release {release.spec.number}."
        raise Refused(Code.DIGEST_MISMATCH, what, "Tell the pool's operator.")
    return release


def _check_logged(source: Source, pool: Pool, release: Release) -> None:
    """Refuse a release that the log does not hold, and a log that is not the one that was seen before: rule 7."""
    reader = LogReader(source.log, pool, source.folder / CHECKPOINT, source.contact.get("quorum", NO_WITNESSES))
    if release.spec.checkpoint is not None:
        reader.check_continues(read_checkpoint(release.spec.checkpoint.encode(), pool))
    reader.find("release", release.digest, str(release.spec.number))


def _pull_mirror(source: Source, pool: Pool, release: Release, held: Mirror | None) -> Mirror:
    known = {bundle.digest: bundle for bundle in held.bundles} if held else {}
    places = [source.folder / BUNDLES / expert.bundle for expert in release.spec.experts]
    bundles = {place: _open_whole(place, pool, known) for place in places}
    missing = {place: _pull_manifest(place.name, source, pool) for place, bundle in bundles.items() if bundle is None}
    listed = listed_files(source.folder, pool, release)
    files = [*listed.values(), *(file for manifest in missing.values() for file in manifest.files.values())]
    source.bar.total = sum(file.size for file in files)
    bundles |= {place: _pull_bundle(place, manifest, source) for place, manifest in missing.items()}
    for path, file in listed.items():
        try:
            pull_beside(path, source, file)
        except GreylagError as error:
            if path.parent.name != STATISTICS or error.code not in _LOST:
                raise
            # Its loss must not keep newcomers out: nothing but time is lost with it.
            source.say("The coordinator lost what the pool tells of public text; it is worked out here when needed.")
    return assemble(source.folder, pool, release, (bundle for bundle in bundles.values() if bundle is not None))


def _open_whole(place: Path, pool: Pool, known: Mapping[str, Bundle]) -> Bundle | None:
    if not place.is_dir():
        return None
    if place.name in known:
        return known[place.name]
    try:
        return open_listed(place, pool)
    except Refused:
        shutil.rmtree(place)  # damaged since it came; fetched afresh
        return None


def _pull_manifest(digest: str, source: Source, pool: Pool) -> Manifest:
    request = catalog_pb2.GetBundleRequest(digest=digest)
    manifest = read_manifest(source.catalog.GetBundle(request, timeout=source.left(DEADLINE_S)).envelope)
    if manifest.digest != digest:
        raise Refused(
            Code.DIGEST_MISMATCH,
            f"The coordinator sent another bundle than {digest[:16]}.",
            "Tell the pool's operator.",
        )
    # The coordinator should have refused what does not fit; its word is not taken for it.
    check_fit(manifest, pool)
    return manifest


def _pull_bundle(place: Path, manifest: Manifest, source: Source) -> Bundle:
    part = place.with_name(f".{place.name}.part")
    part.mkdir(exist_ok=True)
    for name, file in manifest.files.items():
        pull_file(part / name, source, file)
    write_whole(part / ENVELOPE, manifest.envelope)
    try:
        bundle = open_bundle(part)
        check_tensors(bundle)
        check_finite(bundle)
    except Refused:
        # Whatever is wrong with it, the next pull starts this bundle afresh.
        shutil.rmtree(part)
        raise
    for name in (*manifest.files, ENVELOPE):
        sync(part / name)
    part.replace(place)
    return replace(bundle, folder=place)
