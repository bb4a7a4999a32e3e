"""A contributor in a few lines: speaks Intake and Catalog as any client may."""

from collections.abc import Iterator
from pathlib import Path

import grpc

from protocol.bundle import FILES, Bundle
from protocol.documents import ENROLMENT_TYPE, Enrolment, Pool, sign
from protocol.signing import Identity
from protocol.v1 import catalog_pb2, catalog_pb2_grpc, intake_pb2, intake_pb2_grpc
from protocol.wire.chunks import read_chunks

NOW = "2026-11-22T12:00:00Z"
DEADLINE_S = 30.0


def enrolment(pool: str, identity: Identity, name: str) -> bytes:
    return sign(
        ENROLMENT_TYPE, {"pool": pool}, Enrolment(pool=pool, name=name, key=identity.public.hex, created=NOW), identity
    )


def put_requests(path: Path, begun: intake_pb2.BeginReply, name: str, offset: int) -> Iterator[intake_pb2.PutRequest]:
    yield intake_pb2.PutRequest(start=intake_pb2.PutStart(digest=begun.digest, token=begun.token, name=name))
    for chunk in read_chunks(path, offset):
        yield intake_pb2.PutRequest(chunk=chunk)


class Contributor:
    """One key that talks to a coordinator."""

    def __init__(self, channel: grpc.Channel, identity: Identity) -> None:
        self.identity, self.channel = identity, channel
        self.intake = intake_pb2_grpc.IntakeStub(channel)
        self.catalog = catalog_pb2_grpc.CatalogStub(channel)

    def enrol(self, pool: Pool, name: str) -> str:
        request = intake_pb2.EnrolRequest(envelope=enrolment(pool.digest, self.identity, name))
        return self.intake.Enrol(request, timeout=DEADLINE_S).state

    def begin(self, bundle: Bundle) -> intake_pb2.BeginReply:
        return self.intake.Begin(intake_pb2.BeginRequest(envelope=bundle.manifest.envelope), timeout=DEADLINE_S)

    def put(self, bundle: Bundle, begun: intake_pb2.BeginReply, *names: str) -> None:
        for missing in begun.missing:
            if not names or missing.name in names:
                requests = put_requests(bundle.folder / missing.name, begun, missing.name, missing.offset)
                self.intake.Put(requests, timeout=DEADLINE_S)

    def commit(self, begun: intake_pb2.BeginReply) -> bytes:
        request = intake_pb2.CommitRequest(digest=begun.digest, token=begun.token)
        return self.intake.Commit(request, timeout=DEADLINE_S).receipt

    def submit(self, bundle: Bundle) -> bytes:
        begun = self.begin(bundle)
        if begun.receipt:
            return begun.receipt
        self.put(bundle, begun)
        return self.commit(begun)

    def status(self, digest: str) -> intake_pb2.StatusReply:
        return self.intake.Status(intake_pb2.StatusRequest(digest=digest), timeout=DEADLINE_S)

    def fetch(self, sha256: str, offset: int = 0) -> bytes:
        chunks = self.catalog.Fetch(catalog_pb2.FetchRequest(sha256=sha256, offset=offset), timeout=DEADLINE_S)
        return b"".join(chunk.data for chunk in chunks)


__all__ = ["FILES", "Contributor", "enrolment", "put_requests"]
