"""Server side of a connection: limits, TLS, health, errors as status, and a graceful stop."""

import asyncio
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.wire.chunks import MAX_MESSAGE_BYTES, MAX_REPLY_BYTES
from protocol.wire.grpc_client import IDLE_S, STREAM_DEADLINE_S, check_address, is_loopback
from protocol.wire.grpc_status import to_status
from protocol.wire.health import Health
from protocol.wire.pace import Pace
from protocol.wire.peer import Context, Peer
from protocol.wire.places import Places, network_of

DRAIN_S = 20.0
"""How long calls in flight may take to finish after a stop signal, in seconds."""
_OPTIONS = (
    # What a peer may send ahead of its reader, fixed: left to itself gRPC raises it, and a reader that
    # is slow for a while then holds a hundred megabytes of one upload. 4 MiB fill 80 MB/s at 50 ms.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_REPLY_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    # Who connects and then says little or nothing.
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_concurrent_streams", 128),
)
Result = TypeVar("Result")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Listen:
    """Where a server listens, to how many, and how patiently.

    Args:
        address: `host:port`; port 0 takes a free one.
        certificate: Certificate chain, PEM. Needed for anything but loopback.
        key: Its private key, PEM.
        max_concurrent_calls: Calls beyond this many are refused at once (`BUSY`); one peer has a share of them.
        idle_s: How long a peer may keep us waiting, in seconds; see `protocol.wire.peer.Peer`.
        call_s: How long a call may take, in seconds.
    """

    address: str
    certificate: Path | None = None
    key: Path | None = None
    max_concurrent_calls: int = 64
    idle_s: float = IDLE_S
    call_s: float = STREAM_DEADLINE_S


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Bounds calls in number and time, and turns errors into status codes; what is no error of ours, into INTERNAL.

    Every call is handled as one of two streams, whatever it is for the client, since only then gRPC leaves it to
    us how long a request may take to come and a reply to be taken. `count` is called with the code of every refusal.
    """

    def __init__(self, listen: Listen, count: Callable[[Code], None]) -> None:
        self._listen, self._count = listen, count
        most = listen.max_concurrent_calls
        # A call has no place before its request is there. Health has its own, so that a full server is seen alive.
        self._arriving, self._calls, self._watches = Places(2 * most), Places(most), Places(most)
        self._pace = Pace(time.monotonic)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap a handler of any kind."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        places: Places | None = self._calls
        if handler_call_details.method.startswith("/grpc.health."):
            places = self._watches if handler.response_streaming else None

        async def call(_: object, context: Context) -> None:
            peer, network = Peer(context, self._listen.idle_s), network_of(context.peer())
            try:
                async with asyncio.timeout(self._listen.call_s) as whole:
                    if places is not None:
                        await self._pace.turn(network)
                    await self._answer(handler, places, peer, context)
            except grpc.aio.BaseError:
                raise  # the handler's own end, or one of the two sides is gone
            except Exception as error:  # noqa: BLE001 - gRPC would send its text to the client
                if isinstance(error, (Refused, DecodeError)):
                    self._pace.blame(network)
                late = Unavailable(Code.BUSY, "The call took too long.", "Try again; files continue.")
                peer.end(to_status(self._told(late if whole.expired() else error)))

        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    async def _answer(self, handler: Any, places: Places | None, peer: Peer, context: Context) -> None:
        async with self._arriving.one(context.peer()):
            message = await peer.read()
        if message is None:
            raise Refused(Code.BAD_WIRE, "The call ends before its request.")
        first = handler.request_deserializer(message)

        async def requests() -> AsyncIterator[Any]:
            yield first
            while (message := await peer.read()) is not None:
                yield handler.request_deserializer(message)

        async with places.one(context.peer()) if places else nullcontext():
            behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary
            request = requests() if handler.request_streaming else first
            if handler.response_streaming:
                async with aclosing(behaviour(request, context)) as replies:
                    async for reply in replies:
                        await peer.write(reply)
            else:
                await peer.write(await behaviour(request, context))

    def _told(self, error: Exception) -> GreylagError:
        """Say what the other side may know of an error, and keep the rest for the log."""
        if isinstance(error, DecodeError):
            error = Refused(Code.BAD_WIRE, "The message cannot be parsed.", "Do both sides run the same version?")
        if isinstance(error, GreylagError):
            _log.info("refused", code=error.code.name, message=error.message)
        else:
            _log.error("failed", exc_info=error)
            error = Unavailable(Code.INTERNAL, "The other side failed on this.", "Ask its operator for the log.")
        self._count(error.code)
        return error


async def to_end(work: Callable[[], Result]) -> Result:
    """Run something in a thread and wait for its end, even for a caller who gives up.

    A thread cannot be stopped: whatever keeps others out while it works must not let go before it is over.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.wait([task])


async def serve(
    listen: Listen,
    register: Callable[[grpc.aio.Server], Sequence[str]],
    *,
    count: Callable[[Code], None] = lambda _: None,
    on_ready: Callable[[int], None] = lambda _: None,
    healthy: Callable[[], bool] = lambda: True,
    stopped: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        listen: Where.
        register: Adds the servicers and returns their full names, for the health service.
        count: Called with the code of every refusal.
        on_ready: Called once with the port, when calls are being taken.
        healthy: What the health service says.
        stopped: Set by the signal; whoever sets it ends the server, too.

    Raises:
        Refused: `SETTINGS_INVALID` if the address cannot be listened on, or the certificate and its key cannot be used.
    """
    server = grpc.aio.server(interceptors=[CallInterceptor(listen, count)], options=_OPTIONS)
    stopped = stopped or asyncio.Event()
    add_HealthServicer_to_server(Health(register(server), healthy, stopped), server)
    port = _bind(server, listen)
    stop_by_signals(stopped)
    await server.start()
    try:
        on_ready(port)
        await stopped.wait()
    finally:
        stopped.set()
        await server.stop(DRAIN_S)


def stop_by_signals(stopped: asyncio.Event) -> None:
    """Have SIGTERM and SIGINT set an event of the loop that runs."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)


def check_listen(listen: Listen) -> None:
    """Refuse an address that cannot be listened on, before anything that takes long (`SETTINGS_INVALID`)."""
    address = check_address(listen.address)
    _credentials(listen)
    try:
        socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET).close()
    except OSError as error:
        raise _taken(listen) from error


def _bind(server: grpc.aio.Server, listen: Listen) -> int:
    credentials = _credentials(listen)
    try:
        if credentials is None:
            return server.add_insecure_port(listen.address)
        return server.add_secure_port(listen.address, credentials)
    except RuntimeError as error:
        raise _taken(listen) from error


def _taken(listen: Listen) -> Refused:
    return Refused(Code.SETTINGS_INVALID, f"Cannot listen on {listen.address}.", "Is another process listening there?")


def _credentials(listen: Listen) -> grpc.ServerCredentials | None:
    certificate, key, local = listen.certificate, listen.key, is_loopback(listen.address)
    if certificate is None and key is None and local:
        return None
    if certificate is None or key is None:
        what = f"{listen.address} needs TLS, and a certificate or its key is missing."
        raise Refused(Code.SETTINGS_INVALID, what, "Give --tls-cert and --tls-key, or neither and listen on 127.0.0.1.")
    try:
        # gRPC takes any two files, and then answers nobody.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    except OSError as error:
        reason = "they are no pair in PEM format" if isinstance(error, ssl.SSLError) else error.strerror
        raise Refused(
            Code.SETTINGS_INVALID,
            f"{certificate} with the key {key} cannot be used: {reason}.",
            "Check the paths; a key behind a passphrase is not taken.",
        ) from error
