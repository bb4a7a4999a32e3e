"""Server side of a connection: limits, TLS, health, errors as status, and a graceful stop."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.wire.chunks import MAX_MESSAGE_BYTES
from protocol.wire.grpc_client import STREAM_DEADLINE_S, check_address, is_loopback
from protocol.wire.grpc_status import to_status

DRAIN_S = 20.0
"""How long calls in flight may take to finish after a stop signal, in seconds."""
_OPTIONS = (
    # What a peer may send ahead of its reader, fixed: left to itself gRPC raises it, and a reader that
    # is slow for a while then holds a hundred megabytes of one upload. 4 MiB fill 80 MB/s at 50 ms.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    # Whoever leaves a reply unread, or a request unsent, keeps a call open until its connection is cut.
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", round(1000 * STREAM_DEADLINE_S)),
)
_HEALTH_S = 1.0
Result = TypeVar("Result")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Listen:
    """Where a server listens.

    Args:
        address: `host:port`; port 0 takes a free one.
        certificate: Certificate chain, PEM. Needed for anything but loopback.
        key: Its private key, PEM.
        max_concurrent_calls: Calls beyond this many are refused at once (RESOURCE_EXHAUSTED).
    """

    address: str
    certificate: Path | None = None
    key: Path | None = None
    max_concurrent_calls: int = 64


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns our errors into status codes, counts them, and hides everything else behind INTERNAL."""

    def __init__(self, count: Callable[[Code], None]) -> None:
        self._count = count

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap a handler of any of the three kinds that we serve."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc.health."):
            return handler  # the health service reports in gRPC's own words
        # Requests are parsed inside the wrapper, so that garbage is refused with a code of ours.
        parse, make = handler.request_deserializer, grpc.unary_unary_rpc_method_handler
        wrapped: Any
        if handler.response_streaming:
            wrapped, make = self._wrap_stream(handler.unary_stream, parse), grpc.unary_stream_rpc_method_handler
        elif handler.request_streaming:
            wrapped, make = (
                self._wrap_unary(handler.stream_unary, _parse_each(parse)),
                grpc.stream_unary_rpc_method_handler,
            )
        else:
            wrapped = self._wrap_unary(handler.unary_unary, parse)
        return make(wrapped, None, handler.response_serializer)

    def _wrap_unary(self, behaviour: Any, parse: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await behaviour(parse(request), context)
            except Exception as error:  # noqa: BLE001 - gRPC would send its text to the client
                await self._abort(error, context)

        return call

    def _wrap_stream(self, behaviour: Any, parse: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                async for reply in behaviour(parse(request), context):
                    yield reply
            except Exception as error:  # noqa: BLE001 - as above
                await self._abort(error, context)

        return call

    async def _abort(self, error: Exception, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, DecodeError):
            error = Refused(Code.BAD_WIRE, "The message cannot be parsed.", "Do both sides run the same version?")
        if isinstance(error, GreylagError):
            _log.info("refused", code=error.code.name, message=error.message)
        else:
            _log.error("failed", exc_info=error)
            error = Unavailable(
                Code.INTERNAL, "The other side failed on this request.", "Ask its operator for the log."
            )
        self._count(error.code)
        status = to_status(error)
        await context.abort(status.code, status.details, status.trailing_metadata)


def _parse_each(parse: Any) -> Any:
    async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            yield parse(request)

    return parsed


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
) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        listen: Where.
        register: Adds the servicers and returns their full names, for the health service.
        count: Called with the code of every refusal.
        on_ready: Called once with the port, when calls are being taken.
        healthy: What the health service says, looked at every second.

    Raises:
        Refused: `SETTINGS_INVALID` if the address cannot be listened on, or the certificate and its
            key cannot be used.
    """
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor(count)],
        options=_OPTIONS,
        maximum_concurrent_rpcs=listen.max_concurrent_calls,
    )
    monitor = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(monitor, server)
    services = (*register(server), "")
    port = _bind(server, listen)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await server.start()
    await _tell(monitor, services, healthy=healthy())
    on_ready(port)
    try:
        while not stopped.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), _HEALTH_S)
            await _tell(monitor, services, healthy=healthy())
    finally:
        await monitor.enter_graceful_shutdown()
        await server.stop(DRAIN_S)


async def _tell(monitor: health.aio.HealthServicer, services: Sequence[str], *, healthy: bool) -> None:
    said = health_pb2.HealthCheckResponse
    for name in services:
        await monitor.set(name, said.SERVING if healthy else said.NOT_SERVING)


def check_listen(listen: Listen) -> None:
    """Refuse an address that cannot be listened on, before anything that takes long.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    host, _, port = check_address(listen.address).rpartition(":")
    _credentials(listen)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host.strip("[]"), int(port)), family=family).close()
    except OSError as error:
        raise _taken(listen) from error


def _bind(server: grpc.aio.Server, listen: Listen) -> int:
    check_address(listen.address)
    credentials = _credentials(listen)
    try:
        if credentials is None:
            return server.add_insecure_port(listen.address)
        return server.add_secure_port(listen.address, credentials)
    except RuntimeError as error:
        raise _taken(listen) from error


def _taken(listen: Listen) -> Refused:
    pem = ", or is the certificate or its key not PEM" if listen.certificate else ""
    return Refused(
        Code.SETTINGS_INVALID, f"Cannot listen on {listen.address}.", f"Is another process listening there{pem}?"
    )


def _credentials(listen: Listen) -> grpc.ServerCredentials | None:
    if listen.certificate is None and listen.key is None:
        if is_loopback(listen.address):
            return None
        raise Refused(
            Code.SETTINGS_INVALID,
            f"{listen.address} can be reached from other machines, so it needs TLS.",
            "Give --tls-cert and --tls-key, or listen on 127.0.0.1.",
        )
    if listen.certificate is None or listen.key is None:
        raise Refused(
            Code.SETTINGS_INVALID, "TLS needs a certificate and its key; one of them is missing.", "Give both."
        )
    try:
        pair = (listen.key.read_bytes(), listen.certificate.read_bytes())
    except OSError as error:
        raise Refused(
            Code.SETTINGS_INVALID, f"{error.filename} cannot be read: {error.strerror}.", "Check the path."
        ) from error
    return grpc.ssl_server_credentials([pair])
