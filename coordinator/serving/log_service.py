"""The Log service: the transparency log, read by anybody, and signed for by witnesses."""
# ruff: noqa: ARG002, N802 - gRPC decides the names and the parameters of its handlers

import asyncio
from collections.abc import Sequence

from coordinator.registry.log import PAGE
from coordinator.registry.registry import Registry
from coordinator.workspace.checkpoints import Checkpoints
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.log.checkpoint import log_keys, read_checkpoint
from protocol.log.note import Note, NoteKey
from protocol.v1 import log_pb2, log_pb2_grpc
from protocol.wire.peer import Context

_MOST = (1 << 31) - 1


class LogService(log_pb2_grpc.LogServicer):
    """Shows the log, and takes the signatures of some witnesses."""

    def __init__(
        self, pool: Pool, registry: Registry, checkpoints: Checkpoints, witnesses: Sequence[NoteKey] = ()
    ) -> None:
        self._pool, self._registry, self._checkpoints, self._witnesses = pool, registry, checkpoints, witnesses

    async def GetCheckpoint(
        self, request: log_pb2.GetCheckpointRequest, context: Context
    ) -> log_pb2.GetCheckpointReply:
        """Sign the log as it is."""
        # First, so that none is of a larger log than the newest.
        cosigned = await asyncio.to_thread(self._registry.log.cosigned)
        newest = await asyncio.to_thread(self._checkpoints.newest)
        return log_pb2.GetCheckpointReply(checkpoint=newest.note.encode(), cosigned=cosigned)

    async def GetInclusion(self, request: log_pb2.GetInclusionRequest, context: Context) -> log_pb2.GetInclusionReply:
        """Prove that the log holds an entry."""
        words = request.kind, request.subject, request.step
        plain = all(word.isascii() and word.isprintable() for word in words)  # no database takes any text
        found = await asyncio.to_thread(self._registry.log.find, *words) if plain else None
        if found is None or found[0] >= request.size:
            what = (
                f"The log does not say that the {request.kind!r:.40} {request.subject!r:.80} is {request.step!r:.40}."
            )
            raise Refused(Code.LOG_OMISSION, what, "Tell the pool's operator.")
        index, leaf = found
        hashes = await asyncio.to_thread(self._registry.log.inclusion, index, _size(request.size))
        return log_pb2.GetInclusionReply(leaf=leaf, index=index, hashes=hashes)

    async def GetConsistency(
        self, request: log_pb2.GetConsistencyRequest, context: Context
    ) -> log_pb2.GetConsistencyReply:
        """Prove that the log only grew."""
        first, second = _size(request.first), _size(request.second)
        hashes = await asyncio.to_thread(self._registry.log.consistency, first, second)
        return log_pb2.GetConsistencyReply(hashes=hashes)

    async def GetLeaves(self, request: log_pb2.GetLeavesRequest, context: Context) -> log_pb2.GetLeavesReply:
        """Show entries, a page at most."""
        start, count = _size(request.start), min(request.count, PAGE)
        return log_pb2.GetLeavesReply(leaves=await asyncio.to_thread(self._registry.log.leaves, start, count))

    async def AddCosignature(
        self, request: log_pb2.AddCosignatureRequest, context: Context
    ) -> log_pb2.AddCosignatureReply:
        """Keep what a witness has signed."""
        await asyncio.to_thread(self._keep, request.checkpoint)
        return log_pb2.AddCosignatureReply()

    def _keep(self, raw: bytes) -> None:
        signed = read_checkpoint(raw, self._pool)
        by = [key for key in self._witnesses if signed.note.signed_by(key)]
        if not by:
            what = "No witness that this pool knows has signed the checkpoint."
            raise Refused(
                Code.KEY_UNKNOWN, what, "Ask the operator to add your key to `witnesses` in coordinator.toml."
            )
        if self._registry.log.root(_size(signed.size)) != signed.root:
            what = f"The checkpoint of {signed.size} entries is of another log."
            raise Refused(Code.LOG_FORK, what, "Keep it, and tell everybody who follows the pool.")
        for key in by:
            signed.note.verify(key)
            names = {(each.name, each.identifier) for each in (key, *log_keys(self._pool))}
            # Of others' lines nothing is known.
            lines = tuple((name, line) for name, line in signed.note.signatures if (name, line[:4]) in names)
            self._registry.log.keep_cosigned(str(key), signed.size, Note(signed.note.text, lines).encode())


def _size(number: int) -> int:
    """Let only what a database counts through (`REQUEST_INVALID`)."""
    if number > _MOST:
        raise Refused(Code.REQUEST_INVALID, f"The log has no {number} entries.", "Ask for its newest checkpoint first.")
    return number
