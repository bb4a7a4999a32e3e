"""The other end of one call, which is waited for so long and no longer."""

import asyncio
import os
import socket
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

import grpc
import psutil
from google.protobuf.message import Message

from protocol.errors import Code, Unavailable
from protocol.wire.grpc_client import IDLE_S, LEAST_BYTES
from protocol.wire.places import network_of

Context = grpc.aio.ServicerContext[Any, Any]
Result = TypeVar("Result")


class Peer:
    """Reads from and writes to who called; each byte a second, for ever, is given up like silence.

    Args:
        context: The call, of a handler of two streams.
        idle_s: How long it may keep us waiting for every `LEAST_BYTES`, in seconds.
    """

    def __init__(self, context: Context, idle_s: float = IDLE_S) -> None:
        self._context, self._idle_s = context, idle_s
        self._left_s, self._bytes, self._writing = idle_s, 0, False

    async def read(self) -> bytes | None:
        """Return the next message as it came, or None at the end (`BUSY` if it takes too long)."""
        message: bytes | Any = await self._wait(self._context.read())
        if message is grpc.aio.EOF:
            return None
        self._moved(len(message))
        return bytes(message)

    async def write(self, reply: Message) -> None:
        """Send a message; returns when the peer has room for it (`BUSY` if it takes too long)."""
        self._writing = True
        await self._wait(self._context.write(reply))
        self._writing = False
        self._moved(reply.ByteSize())

    def end(self, status: grpc.Status) -> None:
        """Say how the call ended; the handler returns after this.

        What gRPC offers for it, to abort, may reach for a server that is gone already, and takes the process with it.
        Nor can it send a status behind a message that is stuck, or take the message back: it keeps both as long as
        the connection lives, so that whoever leaves a reply unread is hung up on.
        """
        if self._writing:
            _hang_up(self._context.peer())
            raise asyncio.CancelledError
        self._context.set_code(status.code)
        self._context.set_details(status.details)
        self._context.set_trailing_metadata(status.trailing_metadata or ())

    async def _wait(self, step: Awaitable[Result]) -> Result:
        clock = asyncio.get_running_loop().time
        start = clock()
        try:
            async with asyncio.timeout(self._left_s):
                return await step
        except TimeoutError as error:
            what = f"The other side stood still for {self._idle_s:g} s."
            raise Unavailable(Code.BUSY, what, "Try again; files continue.") from error
        finally:
            self._left_s -= clock() - start

    def _moved(self, count: int) -> None:
        self._bytes += count
        if self._bytes >= LEAST_BYTES:
            self._left_s, self._bytes = self._idle_s, 0


def _hang_up(peer: str) -> None:
    """Shut a connection of this process, which gRPC then finds closed from outside."""
    port = peer.rpartition(":")[2]
    for connection in psutil.Process().net_connections("tcp"):
        there = connection.raddr
        if there and str(there.port) == port and network_of(f"tcp:{there.ip}:{port}") == network_of(peer):
            # Its number may have gone to another connection meanwhile.
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as ours:
                if ours.getpeername()[:2] == there:
                    ours.shutdown(socket.SHUT_RDWR)
