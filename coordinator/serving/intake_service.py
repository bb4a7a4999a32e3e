"""The gRPC door: Intake for contributors, Catalog for everyone. Rows and files are touched in threads."""
# ruff: noqa: ARG002, N802 - gRPC decides the names and the parameters of its handlers

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

import grpc

from coordinator.fleet.records.campaigns import Fleet, no_candidate
from coordinator.fleet.records.rounds import Rounds
from coordinator.policy.lifecycle import PUBLIC
from coordinator.registry.registry import Registry
from coordinator.serving.intake import Intake
from coordinator.storage.blobs import Store, is_sha256
from coordinator.storage.spool import Appender, Spool
from protocol.bundle import SignedFile
from protocol.errors import Code, Refused, Unavailable
from protocol.release import Pool
from protocol.v1 import catalog_pb2, catalog_pb2_grpc, intake_pb2, intake_pb2_grpc
from protocol.v1.chunk_pb2 import Chunk
from protocol.wire.chunks import CHUNK_BYTES, check_chunk
from protocol.wire.grpc_server import to_end

SERVICES = ("greylag.v1.Intake", "greylag.v1.Catalog")
_MAX_RELEASE_NUMBER = (1 << 31) - 1
MAX_STREAMS = 24
"""Files on their way in, and as many out, at once; the rest of a server's calls is left to short ones."""
Context = grpc.aio.ServicerContext[Any, Any]


class Streams:
    """Counts open streams, so that slow or silent ones cannot take every call that a server has.

    Args:
        most: How many may be open at once.
    """

    def __init__(self, most: int = MAX_STREAMS) -> None:
        self._most, self._open = most, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Keep a place for the length of a stream.

        Raises:
            Unavailable: `BUSY` if there is none.
        """
        if self._open >= self._most:
            raise Unavailable(Code.BUSY, "Too many files are on their way at once.", "Try again in a minute.")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


class IntakeService(intake_pb2_grpc.IntakeServicer):
    """Takes bundles in.

    Args:
        intake: Decides.
        spool: Where the bytes of `Put` go.
        idle_timeout_s: Longest silence of a stream, in seconds.
    """

    def __init__(self, intake: Intake, spool: Spool, *, idle_timeout_s: float) -> None:
        self._intake, self._spool, self._idle_timeout_s = intake, spool, idle_timeout_s
        # What is being written: (digest, name) by Put, (digest, "") by Commit. Touched by the event loop only.
        self._busy: set[tuple[str, str]] = set()
        self._streams = Streams()

    async def Enrol(self, request: intake_pb2.EnrolRequest, context: Context) -> intake_pb2.EnrolReply:
        """Present a key."""
        return intake_pb2.EnrolReply(state=await asyncio.to_thread(self._intake.enrol, request.envelope))

    async def Begin(self, request: intake_pb2.BeginRequest, context: Context) -> intake_pb2.BeginReply:
        """Judge an envelope and open a session."""
        begun = await asyncio.to_thread(self._intake.begin, request.envelope)
        missing = [intake_pb2.MissingFile(name=name, offset=offset) for name, offset in begun.missing]
        return intake_pb2.BeginReply(digest=begun.digest, token=begun.token, missing=missing, receipt=begun.receipt)

    async def Put(self, requests: AsyncIterator[intake_pb2.PutRequest], context: Context) -> intake_pb2.PutReply:
        """Append a stream of chunks to one file."""
        with self._streams.one():
            return await self._put(requests)

    async def _put(self, requests: AsyncIterator[intake_pb2.PutRequest]) -> intake_pb2.PutReply:
        first = await self._next(requests)
        if first is None or first.WhichOneof("part") != "start":
            raise Refused(Code.BAD_WIRE, "A stream of chunks starts with the file that it is for.")
        start = first.start
        manifest = await asyncio.to_thread(self._intake.session, start.digest, start.token)
        if start.name not in manifest.files:
            raise Refused(
                Code.FILE_NOT_ALLOWED, f"{start.name!r:.200} has no place in a bundle.", "Pack the bundle again."
            )
        with self._claim(start.digest, start.name):
            appender = await asyncio.to_thread(self._open, start.digest, start.name)
            try:
                await self._append(requests, appender, manifest.files[start.name])
            finally:
                appender.close()
        return intake_pb2.PutReply(offset=appender.offset)

    async def Commit(self, request: intake_pb2.CommitRequest, context: Context) -> intake_pb2.CommitReply:
        """Keep a bundle."""
        with self._claim(request.digest, ""):
            receipt = await to_end(partial(self._intake.commit, request.digest, request.token))
        return intake_pb2.CommitReply(receipt=receipt)

    async def Status(self, request: intake_pb2.StatusRequest, context: Context) -> intake_pb2.StatusReply:
        """Tell what became of a bundle."""
        row = await asyncio.to_thread(self._intake.status, request.digest)
        return intake_pb2.StatusReply(
            state=row.state, code=row.code, message=row.message, hint=row.hint, release=row.release
        )

    async def Bind(self, request: intake_pb2.BindRequest, context: Context) -> intake_pb2.BindReply:
        """Take the key of a contributor's daemon."""
        return intake_pb2.BindReply(fleet=await asyncio.to_thread(self._intake.bind, request.envelope))

    async def _append(
        self, requests: AsyncIterator[intake_pb2.PutRequest], appender: Appender, file: SignedFile
    ) -> None:
        while (request := await self._next(requests)) is not None:
            if request.WhichOneof("part") != "chunk":
                raise Refused(Code.BAD_WIRE, "A stream of chunks has one start.")
            data = check_chunk(request.chunk, offset=appender.offset, size=file.size)
            await asyncio.to_thread(appender.write, data)
        await asyncio.to_thread(appender.sync)

    async def _next(self, requests: AsyncIterator[intake_pb2.PutRequest]) -> intake_pb2.PutRequest | None:
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await anext(requests, None)
        except TimeoutError as error:
            raise Unavailable(
                Code.BUSY, f"No chunk arrived for {self._idle_timeout_s:g} s.", "Submit again; it continues."
            ) from error

    def _open(self, digest: str, name: str) -> Appender:
        try:
            return self._spool.append(digest, name)
        except FileNotFoundError as error:
            raise Refused(Code.SESSION_UNKNOWN, f"There is no upload of {digest[:16]}.", "Begin again.") from error

    @contextmanager
    def _claim(self, digest: str, name: str) -> Iterator[None]:
        """Let one stream write a file; a commit needs the whole upload for itself."""
        mine = (digest, name)
        taken = {mine, (digest, "")} & self._busy if name else {entry for entry in self._busy if entry[0] == digest}
        if taken:
            raise Unavailable(Code.BUSY, "Another connection works on this upload.", "Try again in a minute.")
        self._busy.add(mine)
        try:
            yield
        finally:
            self._busy.remove(mine)


class CatalogService(catalog_pb2_grpc.CatalogServicer):
    """Shows the pool, its releases and their bundles.

    Args:
        pool: The pool.
        registry: Rows.
        store: Bytes.
    """

    def __init__(self, pool: Pool, registry: Registry, store: Store) -> None:
        self._pool, self._registry, self._store = pool, registry, store
        self._streams = Streams()

    async def GetPool(self, request: catalog_pb2.GetPoolRequest, context: Context) -> catalog_pb2.GetPoolReply:
        """Show the signed pool."""
        return catalog_pb2.GetPoolReply(envelope=self._pool.envelope)

    async def GetRelease(self, request: catalog_pb2.GetReleaseRequest, context: Context) -> catalog_pb2.GetReleaseReply:
        """Show a signed release, by number or digest, or a candidate that is none yet."""
        if request.candidate:
            digest = _digest(request.candidate)
            candidate = await asyncio.to_thread(Fleet(self._registry).candidate, digest)
            released = None if candidate else await asyncio.to_thread(self._registry.release_by, digest)
            found = candidate or released
            if found is None:
                raise no_candidate(digest)
            return catalog_pb2.GetReleaseReply(envelope=found.envelope)
        row = None
        if request.number <= _MAX_RELEASE_NUMBER:
            row = await asyncio.to_thread(self._registry.release, request.number)
        if row is None:
            raise Refused(
                Code.RELEASE_UNKNOWN,
                f"There is no release {request.number}." if request.number else "There is no release yet.",
                "Wait until the first expert is accepted." if not request.number else "Ask for the newest.",
            )
        return catalog_pb2.GetReleaseReply(envelope=row.envelope)

    async def GetBundle(self, request: catalog_pb2.GetBundleRequest, context: Context) -> catalog_pb2.GetBundleReply:
        """Show a bundle's own envelope."""
        row = await asyncio.to_thread(self._registry.bundle, _digest(request.digest))
        if row is None or row.state not in PUBLIC:
            raise _no_bundle(request.digest)
        return catalog_pb2.GetBundleReply(envelope=row.envelope)

    async def Fetch(self, request: catalog_pb2.FetchRequest, context: Context) -> AsyncIterator[Chunk]:
        """Send a file of a public bundle, or a calibration, from an offset."""
        with self._streams.one():
            async with aclosing(self._fetch(request)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _fetch(self, request: catalog_pb2.FetchRequest) -> AsyncGenerator[Chunk]:
        sha256, offset = _digest(request.sha256), request.offset
        calibration = await asyncio.to_thread(Rounds(self._registry).content, sha256)
        size = len(calibration) if calibration else await asyncio.to_thread(self._registry.public_size, sha256)
        if size is None:
            raise _no_bundle(sha256)
        if offset > size:
            raise Refused(Code.REQUEST_INVALID, f"The file has {size} bytes; byte {offset} was asked for.")
        if calibration:
            for at in range(offset, size, CHUNK_BYTES):
                data = calibration[at : at + CHUNK_BYTES]
                yield Chunk(offset=at, data=data, crc32=zlib.crc32(data))
            return
        if not await asyncio.to_thread(self._store.verify, sha256):
            raise Refused(
                Code.DIGEST_MISMATCH,
                f"The stored file {sha256[:16]} is damaged, so it is not served.",
                "Tell the pool's operator, who should run: greylag-coordinator fsck",
            )
        file = await asyncio.to_thread(self._store.open, sha256, offset)
        try:
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield Chunk(offset=offset, data=data, crc32=zlib.crc32(data))
                offset += len(data)
        finally:
            file.close()


def _digest(text: str) -> str:
    """Let only digests through to the registry (`BUNDLE_UNKNOWN`)."""
    if not is_sha256(text):
        raise _no_bundle(text)
    return text


def _no_bundle(digest: str) -> Refused:
    return Refused(Code.BUNDLE_UNKNOWN, f"There is no bundle or file {digest[:16]!r} to be had.", "Check the digest.")
