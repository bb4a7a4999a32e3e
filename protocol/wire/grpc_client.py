"""Client side of a connection: TLS, message limits, deadlines, gRPC's own retry policy."""

import ipaddress
import json
import re
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from protocol.errors import Code, Refused, Unavailable
from protocol.wire.chunks import MAX_MESSAGE_BYTES, MAX_REPLY_BYTES
from protocol.wire.grpc_status import from_rpc_error
from protocol.wire.reachability import find_fault

DEADLINE_S = 60.0
"""Deadline of a call that moves no file, in seconds."""
STREAM_DEADLINE_S = 3600.0
"""Deadline of a call that moves one file, in seconds."""
IDLE_S, LEAST_BYTES = 30.0, 64 << 10
"""How long one side waits for so many bytes of the other before it gives up, in seconds.

Whole messages count, so that the slowest line that a file gets through moves a chunk (256 KiB) in that time: 9 KB/s.
"""

# Exponential back-off with jitter, inside gRPC: only UNAVAILABLE is retried, and only for calls that
# may be repeated. Put carries a stream that cannot be replayed; upload.py resumes it by offset.
_VERBS = ("Enrol", "Rotate", "Begin", "Commit", "Status", "Bind")
_REPEATABLE = [{"service": f"greylag.v1.{name}"} for name in ("Catalog", "Log", "Query")]
_REPEATABLE += [{"service": "greylag.v1.Intake", "method": verb} for verb in _VERBS]
_RETRY = {
    "maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "3s", "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}  # fmt: skip
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": _REPEATABLE, "retryPolicy": _RETRY}]})),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # which is also how long a connection may take to come about
    ("grpc.enable_http_proxy", 0),
)


@contextmanager
def connect(
    address: str, ca: Path | None = None, options: Sequence[tuple[str, int | str]] | None = None
) -> Iterator[grpc.Channel]:
    """Open a channel, and turn every failed call inside into an error of our table.

    A loopback address without a CA certificate is spoken to in plain text; every other address over TLS, checked
    against the CA certificate (PEM) or, without one, the system's. Other `options` stand in place of all of ours.

    Raises:
        Refused: `SETTINGS_INVALID`, `UNTRUSTED`, or whatever the other side refuses with.
        Unavailable: `UNREACHABLE` or `BUSY`.
    """
    options = OPTIONS if options is None else options
    credentials = _credentials(address, ca)
    if credentials is None:
        channel = grpc.insecure_channel(address, options=options)
    else:
        channel = grpc.secure_channel(address, credentials, options=options)
    try:
        with channel:
            yield channel
    except grpc.RpcError as error:
        told = from_rpc_error(error, address)
        if told.code is Code.UNREACHABLE:
            told = find_fault(address, ca, tls=credentials is not None) or told
        raise told from error


def paced(stream: Any, address: str) -> Iterator[Any]:
    """Pass on the messages of a call, unless fewer than `LEAST_BYTES` come in `IDLE_S` seconds (`UNREACHABLE`)."""
    moved, over, slow = 0, threading.Event(), False

    def watch() -> None:
        nonlocal moved, slow
        while not over.wait(IDLE_S) and not slow:
            moved, slow = 0, moved < LEAST_BYTES
        if slow:
            stream.cancel()

    threading.Thread(target=watch, name="pace", daemon=True).start()
    try:
        for message in stream:
            moved += message.ByteSize()
            yield message
    except grpc.RpcError as error:
        if not slow:
            raise
        what = f"{address} stood still for {IDLE_S:g} s."
        raise Unavailable(Code.UNREACHABLE, what, "Try again; files continue.") from error
    finally:
        over.set()


def is_loopback(address: str) -> bool:
    """Tell whether `host:port` stays on this machine."""
    host, _ = check_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(address: str) -> tuple[str, int]:
    """Return host, without brackets, and port of an address that must read `host:port` (`SETTINGS_INVALID`)."""
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not int(port) < 1 << 16:
        raise Refused(Code.SETTINGS_INVALID, f"{address!r} is not an address.", "Write it as host:port.")
    return host.strip("[]"), int(port)


def _credentials(address: str, ca: Path | None) -> grpc.ChannelCredentials | None:
    local = is_loopback(address)
    if ca is None:
        return None if local else grpc.ssl_channel_credentials()
    try:
        ssl.create_default_context(cafile=ca)  # gRPC takes an empty file for "the system's", and others in silence
        return grpc.ssl_channel_credentials(ca.read_bytes())
    except OSError as error:
        reason = "it is no certificate in PEM format" if isinstance(error, ssl.SSLError) else error.strerror
        raise Refused(
            Code.SETTINGS_INVALID,
            f"{ca} cannot be used as a CA certificate: {reason}.",
            "Check the path, or ask the operator for the certificate.",
        ) from error
