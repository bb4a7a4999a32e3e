"""The server under the door: where it listens, how patient it is with its clients, and how it ends."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from protocol.errors import Code, Refused
from protocol.wire.grpc_client import check_address
from protocol.wire.grpc_server import DRAIN_S, Listen
from router.serving.http.app import build_app
from router.serving.http.door import Door, Serving

HEAD_S = 20.0
"""How long the head of a request may take to come, from its first byte or from the connection, in seconds."""
TAKE_S = 60.0
"""How long a client may leave what it is sent where it is, in seconds."""
MAX_HEAD = 16 << 10
"""Longest head of a request, in bytes."""
_KEEP_S = 30
"""How long a connection is kept between two requests, in seconds: longer than clients do, or both end it at once."""
_MOST_CONNECTIONS = 512
_BACKLOG = 128


class HttpServer:
    """Opens a door at an address.

    Args:
        listen: Where, as `router.serving.users.openness.check_door` has it.
        serving: What the door opens to.

    Attributes:
        port: Where it listens.

    Raises:
        Refused: `SETTINGS_INVALID` if the address cannot be listened on.
    """

    def __init__(self, listen: Listen, serving: Serving) -> None:
        self._door, self._socket = Door(serving), _bind(listen)
        self.port: int = self._socket.getsockname()[1]
        config = Config(
            build_app(self._door), http=Connection, ws="none", lifespan="off", log_config=None, log_level="critical",
            access_log=False, server_header=False, proxy_headers=False, h11_max_incomplete_event_size=MAX_HEAD,
            limit_concurrency=_MOST_CONNECTIONS, timeout_keep_alive=_KEEP_S, timeout_graceful_shutdown=int(DRAIN_S),
            ssl_certfile=listen.certificate, ssl_keyfile=listen.key,
        )  # fmt: skip
        self._server = _Server(config)

    async def serve(self, stopped: asyncio.Event) -> None:
        """Answer until the event is set; then let what runs come to its end, for a while."""
        serving = asyncio.create_task(self._server.serve([self._socket]))
        ended = asyncio.create_task(stopped.wait())
        await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        self._door.leaving = self._server.should_exit = True
        await serving


class _Server(Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the router's process."""
        yield


def _bind(listen: Listen) -> socket.socket:
    address = check_address(listen.address)
    try:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        what = f"Cannot listen on {listen.address}."
        raise Refused(Code.SETTINGS_INVALID, what, "Is another process listening there?") from error


class Connection(H11Protocol):
    """A connection that ends where its client does not go on; uvicorn alone would wait for ever."""

    _head: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Expect a request's head."""
        super().connection_made(transport)
        self._head = self._after(HEAD_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take more of a request."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = self._never(self._head)
        elif self._head is None:
            self._head = self._after(HEAD_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._head, self._taking = self._never(self._head), self._never(self._taking)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the client to take what it was sent."""
        super().pause_writing()
        self._taking = self._after(TAKE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._taking = self._never(self._taking)

    def _after(self, seconds: float, call: Callable[[], Any]) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, call)

    def _never(self, timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
        if timer is not None:
            timer.cancel()
        return None
