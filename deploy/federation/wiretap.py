"""Listens in on a wire: ends TLS with the server's own certificate, and keeps every byte that passes, both ways."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

_PROTOCOLS = ["h2", "http/1.1"]
"""What gRPC and Flower speak."""
_CHUNK_BYTES = 1 << 16
_START_S = 10.0


@dataclass
class Wiretap:
    """Stands before a server, which may come and go."""

    address: str
    """`host:port` where others connect."""
    behind: str
    """`host:port` of the server."""
    certificate: Path
    """The server's, PEM; also what it is trusted by."""
    key: Path
    record: Path
    """File that the bytes are appended to, in the clear."""
    ready: threading.Event = field(default_factory=threading.Event)
    _stop: Callable[[], object] = lambda: None
    _joins: set[object] = field(default_factory=set)
    """Tasks; the loop itself would let go of them."""

    async def serve(self) -> None:
        """Listen until `stop`."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        context.set_alpn_protocols(_PROTOCOLS)
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        host, _, port = self.address.rpartition(":")
        with self.record.open("ab", buffering=0) as file:
            join = partial(self._join, keep=file.write)
            server = await asyncio.start_server(join, host, int(port), ssl=context)
            self.ready.set()
            await stopped.wait()
            server.close()

    def stop(self) -> None:
        """Hang up on everybody."""
        self._stop()

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keep: Callable[[bytes], object]
    ) -> None:
        self._joins.add(asyncio.current_task())
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.set_alpn_protocols([chosen] if chosen else _PROTOCOLS[1:])
        host, _, port = self.behind.rpartition(":")
        with suppress(OSError):
            try:
                there, back = await asyncio.open_connection(host, int(port), ssl=context)
                try:
                    ways = _pass(reader, back, keep), _pass(there, writer, keep)
                    tasks = [asyncio.create_task(way) for way in ways]
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in tasks:
                        task.cancel()  # TLS knows no half-closed connection
                    await asyncio.gather(*tasks, return_exceptions=True)
                finally:
                    back.close()
            finally:
                writer.close()
                self._joins.discard(asyncio.current_task())


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: Callable[[bytes], object]) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        keep(data)
        writer.write(data)
        await writer.drain()


@contextmanager
def tapped(address: str, behind: str, certificate: Path, key: Path, record: Path) -> Iterator[None]:
    """Listen in on a server for the length of a block; parameters as in `Wiretap`."""
    wiretap = Wiretap(address, behind, certificate, key, record)
    thread = threading.Thread(target=lambda: asyncio.run(wiretap.serve()), daemon=True)
    thread.start()
    if not wiretap.ready.wait(_START_S):
        raise RuntimeError(f"Nobody can listen on {address}.")
    try:
        yield
    finally:
        wiretap.stop()
        thread.join()
