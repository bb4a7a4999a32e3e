"""Listens in on a wire: ends TLS with the server's own certificate, and keeps every byte that passes, both ways."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_PROTOCOLS = ["h2", "http/1.1"]
"""What gRPC and Flower speak."""
_CHUNK_BYTES = 1 << 16
_START_S = 10.0


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for loopback and its key, both PEM, and return their paths."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "greylag demo")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[1].chmod(0o600)
    return paths


@contextmanager
def tapped(address: str, behind: str, certificate: Path, key: Path, record: Path) -> Iterator[None]:
    """Listen in on a server, which may come and go, for the length of a block.

    Args:
        address: `host:port` where others connect.
        behind: `host:port` of the server.
        certificate: The server's, PEM; also what it is trusted by.
        key: Its key.
        record: File that the bytes are appended to, in the clear.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(_PROTOCOLS)
    joins: set[object] = set()  # tasks; the loop itself would let go of them
    listening: Future[Callable[[], object]] = Future()

    async def listen() -> None:
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        host, _, port = address.rpartition(":")
        with record.open("ab", buffering=0) as file:

            async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                joins.add(task := asyncio.current_task())
                try:
                    await _join(reader, writer, behind, certificate, file.write)
                finally:
                    writer.close()
                    joins.discard(task)

            server = await asyncio.start_server(join, host, int(port), ssl=context)
            listening.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
            await stopped.wait()
            server.close()

    thread = threading.Thread(target=lambda: asyncio.run(listen()), daemon=True)
    thread.start()
    stop = listening.result(_START_S)
    try:
        yield
    finally:
        stop()
        thread.join()


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    behind: str,
    certificate: Path,
    keep: Callable[[bytes], object],
) -> None:
    chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols([chosen] if chosen else _PROTOCOLS[1:])
    host, _, port = behind.rpartition(":")
    with suppress(OSError):
        there, back = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            tasks = [asyncio.create_task(_pass(*way, keep)) for way in ((reader, back), (there, writer))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()  # TLS knows no half-closed connection
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            back.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: Callable[[bytes], object]) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        keep(data)
        writer.write(data)
        await writer.drain()
