"""A real server on a free loopback port, with a servicer that does what a test asks of it."""

import asyncio
import datetime as dt
import ipaddress
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from protocol.errors import Code
from protocol.v1 import catalog_pb2, intake_pb2
from protocol.v1.catalog_pb2_grpc import CatalogServicer, add_CatalogServicer_to_server
from protocol.v1.chunk_pb2 import Chunk
from protocol.v1.intake_pb2_grpc import IntakeServicer, add_IntakeServicer_to_server
from protocol.wire.grpc_server import Listen, serve

Result = TypeVar("Result")
SERVICES = ("greylag.v1.Catalog", "greylag.v1.Intake")
LOOPBACK = Listen("127.0.0.1:0")
_Servicers: Any = type("_Servicers", (CatalogServicer, IntakeServicer), {})  # what a test does not need stays abstract


@dataclass
class Behaviour(_Servicers):
    """One call of each kind; each raises `error` if there is one, else answers."""

    error: Exception | None = None
    reply: bytes = b"envelope"
    entered: threading.Event = field(default_factory=threading.Event)
    wait_s: float = 0.0
    calls: int = 0

    async def GetPool(self, request: Any, context: Any) -> catalog_pb2.GetPoolReply:  # noqa: N802 - gRPC's name
        self.calls += 1
        self.entered.set()
        await asyncio.sleep(self.wait_s)
        if self.error:
            raise self.error
        return catalog_pb2.GetPoolReply(envelope=self.reply)

    async def Fetch(self, request: Any, context: Any) -> AsyncIterator[Chunk]:  # noqa: N802 - as above
        yield Chunk(offset=request.offset, data=b"first")
        if self.error:
            raise self.error
        yield Chunk(data=b"second")

    async def Put(self, request_iterator: Any, context: Any) -> intake_pb2.PutReply:  # noqa: N802 - as above
        offset = 0
        async for request in request_iterator:
            offset += len(request.chunk.data)
            if self.error:
                raise self.error
        return intake_pb2.PutReply(offset=offset)

    def register(self, server: grpc.aio.Server) -> tuple[str, ...]:
        add_CatalogServicer_to_server(self, server)
        add_IntakeServicer_to_server(self, server)
        return SERVICES


def run(
    behaviour: Behaviour,
    client: Callable[[int], Result],
    listen: Listen = LOOPBACK,
    counted: list[Code] | None = None,
) -> Result:
    """Serve in this (the main) thread while `client` runs in another with the port; then stop."""

    async def both() -> Result:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        codes = [] if counted is None else counted
        serving = asyncio.create_task(serve(listen, behaviour.register, count=codes.append, on_ready=ready.set_result))
        waiting: set[asyncio.Future[Any]] = {serving, ready}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=30)
        if serving.done():
            serving.result()
        try:
            return await asyncio.to_thread(client, ready.result())
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    return asyncio.run(both())


def untyped(channel: grpc.Channel) -> Any:
    """A channel for messages that no stub would send."""
    return channel


class Authority(NamedTuple):
    """A throw-away CA and a server certificate by it, as files."""

    ca: Path
    certificate: Path
    key: Path

    def listen(self, address: str = "127.0.0.1:0") -> Listen:
        return Listen(address, self.certificate, self.key)


def make_authority(folder: Path, *, host: str = "127.0.0.1", days: int = 1) -> Authority:
    folder.mkdir()
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA of {folder.name}")])
    start = dt.datetime.now(dt.UTC) - dt.timedelta(days=10)
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
        return builder.add_extension(extension, critical=False).sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    authority = Authority(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    authority.ca.write_bytes(certificate(ca_name, ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=0)))
    authority.certificate.write_bytes(certificate(name, key.public_key(), alternatives))
    authority.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return authority


def chunks(count: int) -> Iterator[intake_pb2.PutRequest]:
    for _ in range(count):
        yield intake_pb2.PutRequest(chunk=Chunk(data=b"12345"))
