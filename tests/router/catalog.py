"""A catalogue in this process: serves a pool, releases and bundles that a test puts into it."""

import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tuf.ngclient._internal import trusted_metadata_set

from protocol.bundle import Bundle, sha256_of
from protocol.documents import Pool, timestamp
from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.release import CalibrationFile, CapFile, Release, ReleasedExpert, ReleaseSpec, sign_release
from protocol.signing import Identity
from protocol.spec import Routing
from protocol.v1 import catalog_pb2, chunk_pb2
from protocol.v1.catalog_pb2_grpc import CatalogServicer, add_CatalogServicer_to_server
from protocol.v1.log_pb2_grpc import add_LogServicer_to_server
from protocol.wire.chunks import read_chunks
from protocol.wire.grpc_status import to_status
from router.follow import pull as pulling
from tests.protocol.ledger import Ledger
from tests.router.repository import Repository


class Catalog(CatalogServicer):
    """Holds what it is given.

    `breaks` cuts that many file streams after their first chunk; while `silent`, a file that is
    asked for from the middle is not sent at all; while it `drips`, a file comes byte by byte. Files that are `lost`,
    by digest, are damaged in its store.
    """

    def __init__(self, pool: Pool, identity: Identity) -> None:
        self.pool, self.identity = pool, identity
        self.ledger = Ledger(pool, identity)
        self.repository = Repository(pool, identity)
        self.release: Release | None = None
        self.releases: dict[int, Release] = {}
        self.bundles: dict[str, Bundle] = {}
        self.files: dict[str, Path] = {}
        self.breaks = 0
        self.silent = self.drips = False
        self.fetched: list[tuple[str, int]] = []
        self.lost: set[str] = set()

    def publish(
        self,
        bundles: list[Bundle],
        *,
        number: int,
        created: str = "2026-11-22T12:00:00Z",
        expires: str | None = None,
        calibration: Path | None = None,
        cap: Path | None = None,
        method: str = "phatgoose",
    ) -> Release:
        self.ledger.pool, self.ledger.identity = self.pool, self.identity
        for bundle in bundles:
            self.bundles[bundle.digest] = bundle
            self.files |= {file.sha256: bundle.folder / name for name, file in bundle.manifest.files.items()}
        experts = tuple(ReleasedExpert(name=b.spec.name, contributor="ada", bundle=b.digest) for b in bundles)
        file = None
        if calibration is not None:
            file = CalibrationFile(sha256=sha256_of(calibration), size=calibration.stat().st_size, campaign=1)
            self.files[file.sha256] = calibration
        lowered = None
        if cap is not None:
            lowered = CapFile(sha256=sha256_of(cap), size=cap.stat().st_size)
            self.files[lowered.sha256] = cap
        spec = ReleaseSpec(
            pool=self.pool.digest, number=number, previous=self.release.digest if self.release else None,
            experts=experts, routing=Routing(method=method), calibration=file, cap=lowered, created=created,
            expires=expires or timestamp(datetime.now(UTC) + timedelta(days=self.pool.spec.policy.release_days)),
            checkpoint=self.ledger.head.text(),
        )  # fmt: skip
        self.release = self.releases[number] = sign_release(spec, self.identity)
        self.ledger.tell("release", self.release.digest, str(number))
        if self.repository.pool.digest != self.pool.digest:
            self.repository = Repository(self.pool, self.identity)
        self.repository.name(self.release)
        return self.release

    def GetPool(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service\'s name
        return catalog_pb2.GetPoolReply(envelope=self.pool.envelope)

    def GetRelease(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service\'s name
        found = self.releases.get(request.number) if request.number else self.release
        if found is None:
            _abort(context, Refused(Code.RELEASE_UNKNOWN, "There is no such release."))
        assert found
        return catalog_pb2.GetReleaseReply(envelope=found.envelope)

    def GetMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 - as above
        try:
            return catalog_pb2.GetMetadataReply(metadata=self.repository.show(request.role, request.version))
        except Refused as refused:
            _abort(context, refused)

    def GetBundle(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service\'s name
        return catalog_pb2.GetBundleReply(envelope=self.bundles[request.digest].manifest.envelope)

    def Fetch(self, request: Any, context: Any) -> Iterator[chunk_pb2.Chunk]:  # noqa: N802 - as above
        self.fetched.append((request.sha256, request.offset))
        if request.sha256 in self.lost:
            _abort(context, Unavailable(Code.STORE_DAMAGED, "It is damaged."))
        if self.silent and request.offset:
            context.abort(grpc.StatusCode.UNAVAILABLE, "silent")
        if self.drips:
            for offset, byte in enumerate(self.files[request.sha256].read_bytes()[request.offset :], request.offset):
                time.sleep(0.01)
                yield chunk_pb2.Chunk(offset=offset, data=bytes([byte]), crc32=zlib.crc32(bytes([byte])))
        for number, chunk in enumerate(read_chunks(self.files[request.sha256], request.offset)):
            if number and self.breaks:
                self.breaks -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            yield chunk


def set_clock(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Say what time it is to `router.follow.pull`, and to python-tuf."""
    clock = type("Clock", (datetime,), {"now": classmethod(lambda *_: moment)})
    monkeypatch.setattr(pulling, "datetime", clock)
    monkeypatch.setattr(trusted_metadata_set, "datetime", SimpleNamespace(datetime=clock, timezone=timezone))


@contextmanager
def serving(catalog: Catalog) -> Iterator[str]:
    """Serve on a free loopback port."""
    server = grpc.server(ThreadPoolExecutor(4))
    add_CatalogServicer_to_server(catalog, server)
    add_LogServicer_to_server(catalog.ledger, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def _abort(context: Any, error: GreylagError) -> None:
    context.abort_with_status(to_status(error))
