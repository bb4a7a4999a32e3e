"""Bring a pool's newest release onto this machine: only what is missing, checked byte by byte.

What lies where: `router.follow.workspace`.
"""

import errno
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
from filelock import FileLock, Timeout

from protocol.bundle import ENVELOPE, Bundle, Manifest, SignedFile, check_file, open_bundle, read_manifest
from protocol.compatibility import check_fit, check_tensors
from protocol.documents import Pool, read_pool
from protocol.errors import Code, Refused, Unavailable
from protocol.files.atomic import sync, write_whole
from protocol.release import CalibrationFile, Release, check_fresh, read_candidate, read_release
from protocol.signing import PublicKey
from protocol.spec import StatisticsFile
from protocol.v1 import catalog_pb2
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.wire.chunks import check_chunk
from protocol.wire.grpc_client import DEADLINE_S, STREAM_DEADLINE_S, connect, paced
from protocol.wire.grpc_status import from_rpc_error
from router.base.fingerprint import check_base
from router.follow.workspace import (
    BUNDLES,
    CALIBRATIONS,
    FINGERPRINT,
    LOCK,
    POOL,
    RELEASE,
    RELEASES,
    Mirror,
    kept,
    open_listed,
    statistics_of,
)
from router.pool.calibration import Calibration

Say = Callable[[str], None]
_warn = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class _Source:
    """Where files come from."""

    catalog: CatalogStub
    address: str
    """The coordinator, for people."""
    on_bytes: Callable[[int], None]
    """Called with the size of every chunk that arrives."""
    say: Say
    """Talks to whoever pulls."""


def pull(
    folder: Path,
    address: str,
    *,
    ca: Path | None = None,
    pool_key: PublicKey | None = None,
    base: str | None = None,
    held: Mirror | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
    say: Say = _warn,
) -> Mirror:
    """Fetch the newest release into a folder.

    A broken pull leaves what arrived and continues there the next time; the release that was there
    before stays in use until the new one is whole. Of two pulls in one folder one waits for the other.

    Args:
        folder: Where releases are kept; made if it is missing.
        address: The coordinator, `host:port`.
        ca: Its CA certificate, PEM.
        pool_key: The key that must sign the pool; without one, the key pinned at the first pull.
        base: The base model that the pool must be for: folder or Hub id.
        held: What an earlier pull returned: its bundles are not read again.
        on_bytes: Called with the size of every chunk that arrives.
        say: Told which key is trusted on first use, and that another pull is waited for.

    Raises:
        Refused: `UNTRUSTED`, `BASE_MISMATCH`, `RELEASE_UNKNOWN` before the first release, any code of
            `protocol.release.check_fresh`, or of a document or bundle.
        Unavailable: `UNREACHABLE`, `STORAGE_FULL`.
    """
    with _reach(folder, address, ca, on_bytes, say) as source:
        pool = _pull_pool(folder, source, pool_key)
        if base is not None:
            check_base(base, pool.spec.base, folder / FINGERPRINT)
        envelope = source.catalog.GetRelease(catalog_pb2.GetReleaseRequest(), timeout=DEADLINE_S).envelope
        release = read_release(envelope, pool)

        def earlier(number: int) -> Release:
            wanted = catalog_pb2.GetReleaseRequest(number=number)
            return read_release(source.catalog.GetRelease(wanted, timeout=DEADLINE_S).envelope, pool)

        check_fresh(release, seen=_seen(folder, pool), now=datetime.now(UTC), earlier=earlier)
        if held is not None and held.release.digest == release.digest:
            return held
        mirror = _pull_mirror(folder, source, pool, release, held)
        write_whole(kept(folder, release.spec.number), envelope)
        write_whole(folder / RELEASE, envelope)
    return mirror


def pull_exactly(
    folder: Path,
    address: str,
    digest: str,
    *,
    released: bool = False,
    ca: Path | None = None,
    pool_key: PublicKey | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Mirror:
    """Fetch a candidate, or a release of any age, to be tried: it never becomes what `pull` or `open_mirror` return.

    Args:
        folder: As for `pull`, which may use the same one: bundles are fetched once.
        address: The coordinator, `host:port`.
        digest: The candidate or release.
        released: Whether it is a release.
        ca: The coordinator's CA certificate, PEM.
        pool_key: As for `pull`.
        on_bytes: Called with the size of every chunk that arrives.

    Raises:
        Refused: `CANDIDATE_UNKNOWN`, `DIGEST_MISMATCH`, or any code of a document or bundle.
        Unavailable: `UNREACHABLE`, `STORAGE_FULL`.
    """
    with _reach(folder, address, ca, on_bytes) as source:
        pool = _pull_pool(folder, source, pool_key)
        request = catalog_pb2.GetReleaseRequest(candidate=digest)
        envelope = source.catalog.GetRelease(request, timeout=DEADLINE_S).envelope
        candidate = (read_release if released else read_candidate)(envelope, pool)
        if candidate.digest != digest:
            raise Refused(
                Code.DIGEST_MISMATCH,
                f"The coordinator sent another list than {digest[:16]}.",
                "Tell its operator.",
            )
        return _pull_mirror(folder, source, pool, candidate, None)


def pull_calibration(
    folder: Path,
    address: str,
    file: CalibrationFile,
    *,
    ca: Path | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Calibration:
    """Fetch biases and temperatures that no release holds yet; arguments as for `pull_exactly`.

    Raises:
        Refused: `BUNDLE_UNKNOWN`, `DIGEST_MISMATCH`, or as `router.pool.calibration.Calibration.load`.
        Unavailable: `UNREACHABLE`, `STORAGE_FULL`.
    """
    with _reach(folder, address, ca, on_bytes) as source:
        return _pull_calibration(folder, source, file)


def _pull_pool(folder: Path, source: _Source, pool_key: PublicKey | None) -> Pool:
    envelope = source.catalog.GetPool(catalog_pb2.GetPoolRequest(), timeout=DEADLINE_S).envelope
    path = folder / POOL
    if not path.exists():
        pool = read_pool(envelope, pool_key)
        write_whole(path, envelope)
        if pool_key is None:
            key = pool.spec.coordinator
            source.say(f"Trusting the pool's key {key} on first use; compare it with the operator's.")
        return pool
    pinned = read_pool(path.read_bytes())
    pool = read_pool(envelope, pool_key or PublicKey.from_hex(pinned.spec.coordinator))
    if pool.digest != pinned.digest:
        raise Refused(
            Code.WRONG_POOL,
            f"The coordinator serves pool {pool.spec.name}, digest {pool.digest[:16]}; this folder follows "
            f"{pinned.spec.name}, digest {pinned.digest[:16]}.",
            "Use another folder for another pool.",
        )
    return pool


def _seen(folder: Path, pool: Pool) -> Release | None:
    path = folder / RELEASE
    return read_release(path.read_bytes(), pool) if path.exists() else None


def _pull_mirror(folder: Path, source: _Source, pool: Pool, release: Release, held: Mirror | None) -> Mirror:
    spec, known = release.spec, {bundle.digest: bundle for bundle in held.bundles} if held else {}
    bundles = tuple(_pull_bundle(folder / BUNDLES / each.bundle, source, pool, known) for each in spec.experts)
    calibration = None if spec.calibration is None else _pull_calibration(folder, source, spec.calibration)
    statistics = None
    if (told := pool.spec.statistics) is not None:
        statistics = statistics_of(folder, told)
        _pull_listed(statistics, source, told)
    return Mirror(pool, release, bundles, calibration, statistics)


def _pull_calibration(folder: Path, source: _Source, file: CalibrationFile) -> Calibration:
    path = folder / CALIBRATIONS / file.sha256
    _pull_listed(path, source, file)
    return Calibration.load(path.read_bytes())


def _pull_listed(path: Path, source: _Source, file: CalibrationFile | StatisticsFile) -> None:
    path.parent.mkdir(exist_ok=True)
    _pull_file(path, source, SignedFile(file.sha256, file.size))
    sync(path)


def _pull_bundle(whole: Path, source: _Source, pool: Pool, known: Mapping[str, Bundle]) -> Bundle:
    digest = whole.name
    if whole.is_dir():
        if digest in known:
            return known[digest]
        try:
            return open_listed(whole, pool)
        except Refused:
            shutil.rmtree(whole)  # damaged since it came; fetched afresh
    envelope = source.catalog.GetBundle(catalog_pb2.GetBundleRequest(digest=digest), timeout=DEADLINE_S).envelope
    manifest = read_manifest(envelope)
    if manifest.digest != digest:
        raise Refused(
            Code.DIGEST_MISMATCH,
            f"The coordinator sent another bundle than {digest[:16]}.",
            "Tell the pool's operator.",
        )
    # The coordinator should have refused what does not fit; its word is not taken for it.
    check_fit(manifest, pool)
    part = whole.with_name(f".{digest}.part")
    part.mkdir(exist_ok=True)
    for name, file in manifest.files.items():
        _pull_file(part / name, source, file)
    write_whole(part / ENVELOPE, envelope)
    bundle = _open_part(part, manifest)
    part.replace(whole)
    return replace(bundle, folder=whole)


def _open_part(part: Path, manifest: Manifest) -> Bundle:
    try:
        bundle = open_bundle(part)
        check_tensors(bundle)
    except Refused:
        # Whatever is wrong with it, the next pull starts this bundle afresh.
        shutil.rmtree(part)
        raise
    for name in (*manifest.files, ENVELOPE):
        sync(part / name)
    return bundle


def _pull_file(path: Path, source: _Source, file: SignedFile) -> None:
    path.touch()
    if path.stat().st_size >= file.size:
        with suppress(Refused):  # damaged since it came; fetched afresh
            check_file(path, file)
            return
        path.write_bytes(b"")
    offset = path.stat().st_size
    while offset < file.size:
        try:
            _continue_file(path, source, file, offset)
            if path.stat().st_size == offset:
                raise Refused(
                    Code.SIZE_MISMATCH,
                    f"{source.address} ends {path.name} at byte {offset}; {file.size} were signed.",
                    "Tell the pool's operator.",
                )
        except grpc.RpcError as error:
            ours = from_rpc_error(error, source.address)
            # gRPC has retried already where not a byte came; a stream that broke later is continued.
            if not isinstance(ours, Unavailable) or path.stat().st_size == offset:
                raise ours from error
        offset = path.stat().st_size
    try:
        check_file(path, file)
    except Refused:
        path.unlink()
        raise


def _continue_file(path: Path, source: _Source, file: SignedFile, offset: int) -> None:
    wanted = catalog_pb2.FetchRequest(sha256=file.sha256, offset=offset)
    stream = source.catalog.Fetch(wanted, timeout=STREAM_DEADLINE_S)
    with path.open("ab") as out:
        for chunk in paced(stream, source.address):
            data = check_chunk(chunk, offset=offset, size=file.size)
            out.write(data)
            offset += len(data)
            source.on_bytes(len(data))


@contextmanager
def _reach(
    folder: Path, address: str, ca: Path | None, on_bytes: Callable[[int], None], say: Say = _warn
) -> Iterator[_Source]:
    """Connect to a coordinator with the folder locked, and say in words what a disk would not take."""
    lock = FileLock(folder / LOCK)
    try:
        with connect(address, ca) as channel:
            for name in (BUNDLES, RELEASES):
                (folder / name).mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"Another pull works in {folder}; waiting for it.")
                lock.acquire()
            try:
                yield _Source(CatalogStub(channel), address, on_bytes, say)
            finally:
                lock.release()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(
                Code.STORAGE_FULL,
                f"The disk that holds {folder} is full.",
                "Make room; the pull continues where it is.",
            ) from error
        raise Refused(
            Code.SETTINGS_INVALID, f"{folder} cannot be written: {error.strerror}.", "Choose another folder."
        ) from error
