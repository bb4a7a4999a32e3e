"""HTTP connections whose peers are waited for so long and no longer; uvicorn itself waits for ever."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from protocol.wire.grpc_client import IDLE_S, LEAST_BYTES


class HastyProtocol(H11Protocol):
    """Hangs up on who moves less than `LEAST_BYTES` of a head, a body or a reply in `IDLE_S` seconds.

    h11 takes 64 KiB of headers; uvicorn's other parser, which is there with Flower, takes any number.
    """

    _moved = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Begin to look at the connection now and then."""
        super().connection_made(transport)
        self._look(before=object())

    def data_received(self, data: bytes) -> None:
        """Count what comes."""
        self._moved += len(data)
        super().data_received(data)

    def resume_writing(self) -> None:
        """Count what goes: as much, about, has left the transport when it says this."""
        self._moved += LEAST_BYTES
        super().resume_writing()

    def _look(self, before: object) -> None:
        """Compare with the look before: nothing is moved if the same request or reply is still being waited for."""
        theirs = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.flow.read_paused
        waits_for = self.cycle if theirs or self.transport.get_write_buffer_size() else object()
        if waits_for is before and self._moved < LEAST_BYTES:
            self.transport.abort()
        elif self in self.connections:
            self._moved = 0
            self.loop.call_later(IDLE_S, self._look, waits_for)
