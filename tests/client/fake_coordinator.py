"""A coordinator in this process: the protocol's rules and nothing else, with faults on demand."""

import hashlib
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from protocol.bundle import Manifest, read_manifest
from protocol.documents import RECEIPT_TYPE, Pool, Receipt, read_enrolment, read_rotation, sign
from protocol.errors import Code, GreylagError, Refused
from protocol.fleet.attestation import Attestation
from protocol.fleet.node_key import read_binding
from protocol.signing import Identity
from protocol.v1 import catalog_pb2, catalog_pb2_grpc, intake_pb2, intake_pb2_grpc
from protocol.v1.chunk_pb2 import Chunk
from protocol.v1.log_pb2_grpc import add_LogServicer_to_server
from protocol.wire.chunks import check_chunk
from protocol.wire.grpc_status import to_status
from tests.factories import NOW
from tests.protocol.ledger import Ledger

TOKEN = b"secret"


# gRPC's generated classes name the methods.
# ruff: noqa: N802


@dataclass
class FakeCoordinator(intake_pb2_grpc.IntakeServicer, catalog_pb2_grpc.CatalogServicer):
    """Keeps what arrives in memory."""

    pool: Pool
    identity: Identity
    names: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    files: dict[tuple[str, str], bytearray] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    states: list[intake_pb2.StatusReply] = field(default_factory=list)
    """Answers of Status, one after the other; the last one stays."""
    calls: list[str] = field(default_factory=list)
    put_offsets: list[tuple[str, int]] = field(default_factory=list)
    heard: bytearray = field(default_factory=bytearray)
    """Every byte of every request."""
    break_after: list[int] = field(default_factory=list)
    """For the next streams: break after this many bytes."""
    fail: dict[str, list[GreylagError]] = field(default_factory=dict)
    """For the next calls of a name: fail with this."""
    nodes: dict[str, str] = field(default_factory=dict)
    attestations: list[Attestation | None] = field(default_factory=list)
    """Keys of daemons by contributor."""
    key_state: str = "active"
    also_missing: str | None = None
    """Ask for this file, too."""
    receipt_key: Identity | None = None
    """Sign receipts with another key than the pool's."""

    receipt_says: dict[str, str] = field(default_factory=dict)
    """Fields of receipts that are not as they should be."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.pool, self.identity)

    def GetPool(self, request: catalog_pb2.GetPoolRequest, context: grpc.ServicerContext) -> catalog_pb2.GetPoolReply:
        self._enter("GetPool", request.SerializeToString(), context)
        return catalog_pb2.GetPoolReply(envelope=self.pool.envelope)

    def GetMetadata(
        self, request: catalog_pb2.GetMetadataRequest, context: grpc.ServicerContext
    ) -> catalog_pb2.GetMetadataReply:
        self.heard += request.SerializeToString()
        self._abort(Refused(Code.RELEASE_UNKNOWN, "There is no root: the pool's key does it all."), context)
        return catalog_pb2.GetMetadataReply()

    def Enrol(self, request: intake_pb2.EnrolRequest, context: grpc.ServicerContext) -> intake_pb2.EnrolReply:
        self._enter("Enrol", request.SerializeToString(), context)
        enrolment = read_enrolment(request.envelope)
        self._check_pool(enrolment.pool, context)
        self.names[enrolment.key] = enrolment.name
        return intake_pb2.EnrolReply(state=self.key_state)

    def Rotate(self, request: intake_pb2.RotateRequest, context: grpc.ServicerContext) -> intake_pb2.RotateReply:
        self._enter("Rotate", request.SerializeToString(), context)
        rotation = read_rotation(request.envelope)
        self._check_pool(rotation.pool, context)
        if rotation.new not in self.names:
            if rotation.old not in self.names:
                self._abort(Refused(Code.KEY_UNKNOWN, "Nobody knows the key."), context)
            self.names[rotation.new] = self.names.pop(rotation.old)
        return intake_pb2.RotateReply(state=self.key_state)

    def Begin(self, request: intake_pb2.BeginRequest, context: grpc.ServicerContext) -> intake_pb2.BeginReply:
        self._enter("Begin", request.SerializeToString(), context)
        manifest = read_manifest(request.envelope)
        self.manifests[manifest.digest] = manifest
        if manifest.digest in self.kept:
            return intake_pb2.BeginReply(digest=manifest.digest, receipt=self.kept[manifest.digest])
        missing = [
            intake_pb2.MissingFile(name=name, offset=len(self.files.get((manifest.digest, name), b"")))
            for name, file in manifest.files.items()
            if len(self.files.get((manifest.digest, name), b"")) < file.size
        ]
        if self.also_missing is not None:
            missing.append(intake_pb2.MissingFile(name=self.also_missing))
        return intake_pb2.BeginReply(digest=manifest.digest, token=TOKEN, missing=missing)

    def Put(
        self, request_iterator: Iterator[intake_pb2.PutRequest], context: grpc.ServicerContext
    ) -> intake_pb2.PutReply:
        start = next(request_iterator).start
        self._enter("Put", start.SerializeToString(), context)
        held = self.files.setdefault((start.digest, start.name), bytearray())
        self.put_offsets.append((start.name, len(held)))
        left = self.break_after.pop(0) if self.break_after else None
        size = self.manifests[start.digest].files[start.name].size
        for request in request_iterator:
            self.heard += request.SerializeToString()
            held += check_chunk(request.chunk, offset=len(held), size=size)
            if left is not None and (left := left - len(request.chunk.data)) <= 0:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the line is cut")
        return intake_pb2.PutReply(offset=len(held))

    def Commit(self, request: intake_pb2.CommitRequest, context: grpc.ServicerContext) -> intake_pb2.CommitReply:
        self._enter("Commit", request.SerializeToString(), context)
        manifest = self.manifests[request.digest]
        for name, file in manifest.files.items():
            if hashlib.sha256(self.files[request.digest, name]).hexdigest() != file.sha256:
                self._abort(Refused(Code.DIGEST_MISMATCH, f"{name} is damaged."), context)
        receipt = Receipt(
            pool=self.pool.digest,
            bundle=request.digest,
            contributor=manifest.spec.contributor,
            sequence=len(self.kept) + 1,
            received=NOW,
        ).model_copy(update=self.receipt_says)
        envelope = sign(RECEIPT_TYPE, {"bundle": request.digest}, receipt, self.receipt_key or self.identity)
        self.kept[request.digest] = envelope
        self.ledger.tell("bundle", request.digest, "received")
        return intake_pb2.CommitReply(receipt=envelope)

    def Status(self, request: intake_pb2.StatusRequest, context: grpc.ServicerContext) -> intake_pb2.StatusReply:
        self._enter("Status", request.SerializeToString(), context)
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def Bind(self, request: intake_pb2.BindRequest, context: grpc.ServicerContext) -> intake_pb2.BindReply:
        self._enter("Bind", request.SerializeToString(), context)
        binding = read_binding(request.envelope)
        self._check_pool(binding.pool, context)
        self.nodes[binding.contributor] = binding.node
        self.attestations.append(binding.attestation)
        return intake_pb2.BindReply(fleet="127.0.0.1:1")

    def GetRelease(
        self, request: catalog_pb2.GetReleaseRequest, context: grpc.ServicerContext
    ) -> catalog_pb2.GetReleaseReply:
        raise NotImplementedError  # contributors never ask

    def GetBundle(
        self, request: catalog_pb2.GetBundleRequest, context: grpc.ServicerContext
    ) -> catalog_pb2.GetBundleReply:
        raise NotImplementedError

    def Fetch(self, request: catalog_pb2.FetchRequest, context: grpc.ServicerContext) -> Iterator[Chunk]:
        raise NotImplementedError

    def _enter(self, name: str, raw: bytes, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        self.heard += raw
        if self.fail.get(name):
            self._abort(self.fail[name].pop(0), context)

    def _check_pool(self, named: str, context: grpc.ServicerContext) -> None:
        if named != self.pool.digest:
            self._abort(Refused(Code.WRONG_POOL, "It is about another pool."), context)

    @staticmethod
    def _abort(error: GreylagError, context: grpc.ServicerContext) -> None:
        context.abort_with_status(to_status(error))


@contextmanager
def serving(fake: FakeCoordinator) -> Iterator[str]:
    """Serve on loopback; give the address."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    intake_pb2_grpc.add_IntakeServicer_to_server(fake, server)
    catalog_pb2_grpc.add_CatalogServicer_to_server(fake, server)
    add_LogServicer_to_server(fake.ledger, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait(5)
