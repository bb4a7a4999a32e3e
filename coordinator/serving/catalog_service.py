"""The Catalog service: releases and bundles, read by anybody."""
# ruff: noqa: ARG002, N802 - gRPC decides the names and the parameters of its handlers

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import IO

from coordinator.fleet.records.candidates import no_candidate
from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.lifecycle import is_public
from coordinator.registry.registry import Registry
from coordinator.storage.blobs import Store
from protocol.documents import Pool
from protocol.errors import Code, Refused, Unavailable
from protocol.statement import is_sha256
from protocol.v1 import catalog_pb2, catalog_pb2_grpc
from protocol.v1.chunk_pb2 import Chunk
from protocol.wire.chunks import CHUNK_BYTES
from protocol.wire.grpc_server import to_end
from protocol.wire.peer import Context
from protocol.wire.places import Places

_MAX_RELEASE_NUMBER = (1 << 31) - 1


class CatalogService(catalog_pb2_grpc.CatalogServicer):
    """Shows the pool, its releases and their bundles; at most so many `streams` of files are on their way at once.

    `metadata` returns that of a role, by name and version.
    """

    def __init__(
        self, pool: Pool, registry: Registry, store: Store, streams: Places, metadata: Callable[[str, int], bytes]
    ) -> None:
        self._pool, self._registry, self._store, self._streams = pool, registry, store, streams
        self._metadata = metadata
        # One file at a time: whoever asks and goes away leaves a thread at work, and the others to short calls.
        self._hashing = asyncio.Lock()

    async def GetPool(self, request: catalog_pb2.GetPoolRequest, context: Context) -> catalog_pb2.GetPoolReply:
        """Show the signed pool."""
        return catalog_pb2.GetPoolReply(envelope=self._pool.envelope)

    async def GetRelease(self, request: catalog_pb2.GetReleaseRequest, context: Context) -> catalog_pb2.GetReleaseReply:
        """Show a signed release, by number or digest, or a candidate that is none yet."""
        if request.candidate:
            digest = _digest(request.candidate)
            candidate = await asyncio.to_thread(Fleet(self._registry).candidates.find, digest)
            released = None if candidate else await asyncio.to_thread(self._registry.releases.by_digest, digest)
            found = candidate or released
            if found is None:
                raise no_candidate(digest)
            return catalog_pb2.GetReleaseReply(envelope=found.envelope)
        number = request.number
        row = await asyncio.to_thread(self._registry.releases.find, number) if number <= _MAX_RELEASE_NUMBER else None
        if row is None and number:
            raise Refused(Code.RELEASE_UNKNOWN, f"There is no release {number}.", "Ask for the newest.")
        if row is None:
            what = "There is no release yet."
            raise Refused(Code.RELEASE_UNKNOWN, what, "Wait until the first expert is accepted.")
        return catalog_pb2.GetReleaseReply(envelope=row.envelope)

    async def GetMetadata(
        self, request: catalog_pb2.GetMetadataRequest, context: Context
    ) -> catalog_pb2.GetMetadataReply:
        """Show metadata of a role."""
        metadata = await asyncio.to_thread(self._metadata, request.role, request.version)
        return catalog_pb2.GetMetadataReply(metadata=metadata)

    async def GetBundle(self, request: catalog_pb2.GetBundleRequest, context: Context) -> catalog_pb2.GetBundleReply:
        """Show a bundle's own envelope."""
        row = await asyncio.to_thread(self._registry.bundles.find, _digest(request.digest))
        if row is None or not is_public(row.state, row.release):
            raise _no_bundle(request.digest)
        return catalog_pb2.GetBundleReply(envelope=row.envelope)

    async def Fetch(self, request: catalog_pb2.FetchRequest, context: Context) -> AsyncIterator[Chunk]:
        """Send a file of a public bundle, a calibration, a cap, or the pool's statistics, from an offset."""
        sha256, offset = _digest(request.sha256), request.offset
        biases = await asyncio.to_thread(self._biases, sha256)
        size = len(biases) if biases else await asyncio.to_thread(self._public_size, sha256)
        if size is None:
            raise _no_bundle(sha256)
        if offset > size:
            raise Refused(Code.REQUEST_INVALID, f"The file has {size} bytes; byte {offset} was asked for.")
        async with self._streams.one(context.peer()):
            with await self._open(sha256, biases, offset) as file:
                while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                    yield Chunk(offset=offset, data=data, crc32=zlib.crc32(data))
                    offset += len(data)

    def _biases(self, sha256: str) -> bytes | None:
        return Fleet(self._registry).rounds.content(sha256) or self._registry.caps.content(sha256)

    def _public_size(self, sha256: str) -> int | None:
        told = self._pool.spec.statistics
        return told.size if told and told.sha256 == sha256 else self._registry.bundles.public_size(sha256)

    async def _open(self, sha256: str, biases: bytes | None, offset: int) -> IO[bytes]:
        if biases:
            return BytesIO(biases[offset:])
        async with self._hashing:
            whole = await to_end(partial(self._store.is_whole, sha256))
        with suppress(FileNotFoundError):
            if whole:
                return await asyncio.to_thread(self._store.open, sha256, offset)
        hint = "Tell the pool's operator, who should run: greylag-coordinator fsck"
        raise Unavailable(Code.STORE_DAMAGED, f"The stored file {sha256[:16]} is damaged, so not served.", hint)


def _digest(text: str) -> str:
    """Let only digests through to the registry (`BUNDLE_UNKNOWN`)."""
    if not is_sha256(text):
        raise _no_bundle(text)
    return text


def _no_bundle(digest: str) -> Refused:
    return Refused(Code.BUNDLE_UNKNOWN, f"There is no bundle or file {digest[:16]!r} to be had.", "Check the digest.")
