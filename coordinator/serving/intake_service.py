"""The gRPC door: Intake for contributors, Catalog for everyone. Rows and files are touched in threads."""
# ruff: noqa: ARG002, N802 - gRPC decides the names and the parameters of its handlers

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial

from coordinator.serving.intake import Intake, no_session
from coordinator.storage.spool import Appender, Spool
from protocol.bundle import SignedFile
from protocol.errors import Code, Refused, Unavailable
from protocol.v1 import intake_pb2, intake_pb2_grpc
from protocol.wire.chunks import check_chunk
from protocol.wire.grpc_server import to_end
from protocol.wire.peer import Context
from protocol.wire.places import Places, network_of

SERVICES = ("greylag.v1.Intake", "greylag.v1.Catalog", "greylag.v1.Log")


class IntakeService(intake_pb2_grpc.IntakeServicer):
    """Takes bundles in.

    Args:
        intake: Decides.
        spool: Where the bytes of `Put` go.
        streams: Files on their way at once; the rest of a server's calls is left to short ones.
    """

    def __init__(self, intake: Intake, spool: Spool, streams: Places) -> None:
        self._intake, self._spool, self._streams = intake, spool, streams
        # What is being written: (digest, name) by Put, (digest, "") by Commit. Touched by the event loop only.
        self._busy: set[tuple[str, str]] = set()

    async def Enrol(self, request: intake_pb2.EnrolRequest, context: Context) -> intake_pb2.EnrolReply:
        """Present a key."""
        network = network_of(context.peer())
        state = await asyncio.to_thread(self._intake.enrol, request.envelope, network, request.invite)
        return intake_pb2.EnrolReply(state=state)

    async def Rotate(self, request: intake_pb2.RotateRequest, context: Context) -> intake_pb2.RotateReply:
        """Let a new key take an old one's place."""
        network = network_of(context.peer())
        state = await asyncio.to_thread(self._intake.rotate, request.envelope, network)
        return intake_pb2.RotateReply(state=state)

    async def Begin(self, request: intake_pb2.BeginRequest, context: Context) -> intake_pb2.BeginReply:
        """Judge an envelope and open a session."""
        return await asyncio.to_thread(self._intake.begin, request.envelope)

    async def Put(self, requests: AsyncIterator[intake_pb2.PutRequest], context: Context) -> intake_pb2.PutReply:
        """Append a stream of chunks to one file."""
        first = await anext(requests)
        if first.WhichOneof("part") != "start":
            raise Refused(Code.BAD_WIRE, "A stream of chunks starts with the file that it is for.")
        start = first.start
        manifest = await asyncio.to_thread(self._intake.session, start.digest, start.token)
        if start.name not in manifest.files:
            what = f"{start.name!r:.200} has no place in a bundle."
            raise Refused(Code.FILE_NOT_ALLOWED, what, "Pack the bundle again.")
        async with self._streams.one(context.peer()):
            with self._claim(start.digest, start.name):
                file = manifest.files[start.name]
                appender = await asyncio.to_thread(self._open, start.digest, start.name, file.size)
                try:
                    await self._append(requests, appender, file)
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
        async for request in requests:
            if request.WhichOneof("part") != "chunk":
                raise Refused(Code.BAD_WIRE, "A stream of chunks has one start.")
            data = check_chunk(request.chunk, offset=appender.offset, size=file.size)
            await asyncio.to_thread(appender.write, data)
        await asyncio.to_thread(appender.sync)

    def _open(self, digest: str, name: str, size: int) -> Appender:
        try:
            return self._spool.append(digest, name, size)
        except FileNotFoundError as error:
            raise no_session(digest) from error

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
