"""Calls that are none: garbage, silence, too much, too long, too many, to nobody."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from coordinator.conformance.answer import AnsweredError, UnmetError
from coordinator.conformance.case import Case, Play, Row, named
from coordinator.conformance.stage import Stage
from coordinator.conformance.wire import REPLIES
from protocol.bundle import ADAPTER_WEIGHTS
from protocol.errors import Code
from protocol.v1 import catalog_pb2, intake_pb2
from protocol.wire.chunks import MAX_MESSAGE_BYTES

SERVICES = ("", "greylag.v1.Intake", "greylag.v1.Catalog", "greylag.v1.Log")
# What takes fields; of an empty message nothing can be garbled but what nobody reads.
GARBAGE = {"tag-of-nothing": b"\x07", "cut": b"\x0a\x64abc", "endless-number": b"\xff" * 11, "group": b"\x0b\x0b\x0b"}
_MOST_ARRIVING = 200


def _garbage(method: str, raw: bytes) -> Play:
    return lambda stage: stage.wire.ask(method, raw)


def _silence(method: str) -> Play:
    """End a call before its request."""
    return lambda stage: stage.wire.stream(method, [])


def _oversize(method: str) -> Play:
    """Send a message of more than two mebibytes."""
    field = b"\x0a" + _varint(MAX_MESSAGE_BYTES) + bytes(MAX_MESSAGE_BYTES)
    return lambda stage: stage.wire.ask(method, field)


def _varint(number: int) -> bytes:
    digits = []
    while number:
        digits.append(number & 0x7F | (0x80 if number > 0x7F else 0))  # noqa: PLR2004 - seven bits a byte
        number >>= 7
    return bytes(digits)


def _bomb(stage: Stage) -> object:
    """Send 64 MiB of zeros in some kilobytes."""
    raw = b"\x0a" + _varint(64 << 20) + bytes(64 << 20)
    return stage.wire.ask("Intake/Begin", raw, compression=grpc.Compression.Gzip)


def _hurried_upload(stage: Stage) -> None:
    """A deadline that passes in the middle of a file leaves the upload as it is."""
    draft = stage.first("bob")
    begun, over = stage.begin(draft), threading.Event()

    def slow() -> Iterator[Any]:
        yield intake_pb2.PutRequest(
            start=intake_pb2.PutStart(digest=begun.digest, token=begun.token, name=ADAPTER_WEIGHTS)
        )
        over.wait(5)

    try:
        stage.wire.stream("Intake/Put", slow(), deadline_s=0.5)
    except AnsweredError as error:
        if error.answer.status != "DEADLINE_EXCEEDED":
            raise
    finally:
        over.set()
    again = stage.begin(draft)
    if again.token != begun.token:
        raise UnmetError("A deadline ended an upload.")


def _unread(field: int) -> Play:
    """Send a field that only a later version knows; whoever does not know it passes it over."""
    raw = _varint(field << 3 | 2) + b"\x03new"
    return lambda stage: stage.wire.ask("Catalog/GetPool", raw)


def _waiting(over: threading.Event) -> Iterator[bytes]:
    over.wait(20)
    yield from ()


def _too_many(stage: Stage) -> None:
    """Open calls without a word until no more are taken; whoever holds them must not keep others out for long."""
    over = threading.Event()
    held = [stage.wire.held("Catalog/GetPool", _waiting(over)) for _ in range(_MOST_ARRIVING)]
    try:
        if not any(_ends(call) for call in held):
            raise UnmetError(f"{_MOST_ARRIVING} calls of one connection are held open at once.")
    finally:
        over.set()
        for call in held:
            call.cancel()
    stage.settled(lambda: _path(stage, "greylag.v1.Catalog/GetPool"))


def _ends(call: Any) -> bool:
    """Tell whether a call was turned away in a moment."""
    said = threading.Event()
    if not call.add_callback(said.set):
        said.set()  # it is over, and nobody is told any more
    return said.wait(0.05) and call.code() is not None


def _health(service: str) -> Play:
    def play(stage: Stage) -> None:
        raw = _call_health(stage, "Check", service)
        if HealthCheckResponse.FromString(raw).status != HealthCheckResponse.SERVING:
            raise UnmetError(f"{service or 'The server'} does not say that it serves.")

    return play


def _watch(stage: Stage) -> None:
    call = stage.wire.channel.unary_stream(
        "/grpc.health.v1.Health/Watch", request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )(HealthCheckRequest(), timeout=10)  # fmt: skip
    first = next(iter(call))
    call.cancel()
    if first.status != HealthCheckResponse.SERVING:
        raise UnmetError("Who watches is not told that the server serves.")


def _call_health(stage: Stage, verb: str, service: str) -> bytes:
    return _path(stage, f"grpc.health.v1.Health/{verb}", HealthCheckRequest(service=service).SerializeToString())


def _path(stage: Stage, path: str, raw: bytes = b"") -> bytes:
    found: bytes = stage.wire.at(path, raw)
    return found


def cases() -> list[Case]:
    """All of them."""
    methods = sorted(REPLIES)
    rows: list[Row] = [
        (f"garbage/{method}/{name}", _garbage(method, raw), Code.BAD_WIRE)
        for method in methods
        for name, raw in GARBAGE.items()
        if method in ("Intake/Begin", "Intake/Put", "Catalog/Fetch", "Log/GetLeaves") or name == "cut"
    ]
    rows += [(f"silence/{method}", _silence(method), Code.BAD_WIRE) for method in methods]
    rows += [
        (f"oversize/{method}", _oversize(method), "RESOURCE_EXHAUSTED")
        for method in ("Intake/Enrol", "Intake/Begin", "Intake/Bind", "Intake/Put", "Log/AddCosignature")
    ]
    rows += [
        ("gzip-bomb", _bomb, "RESOURCE_EXHAUSTED"),
        ("metadata-of-20-kilobytes", lambda stage: stage.wire.ask(
            "Catalog/GetPool", catalog_pb2.GetPoolRequest(), metadata=[("x", "y" * 20_000)]), "RESOURCE_EXHAUSTED"),
        ("unknown-method", lambda stage: _path(stage, "greylag.v1.Intake/Open"), "UNIMPLEMENTED"),
        ("unknown-service", lambda stage: _path(stage, "greylag.v1.Admin/Accept"), "UNIMPLEMENTED"),
        ("unknown-version", lambda stage: _path(stage, "greylag.v2.Intake/Begin"), "UNIMPLEMENTED"),
        ("method-in-small-letters", lambda stage: _path(stage, "greylag.v1.Intake/begin"), "UNIMPLEMENTED"),
        ("no-method", lambda stage: _path(stage, "greylag.v1.Intake/"), "UNIMPLEMENTED"),
        ("reflection", lambda stage: _path(
            stage, "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"), "UNIMPLEMENTED"),
        ("deadline-in-an-upload", _hurried_upload, None),
        ("field-of-a-later-version", _unread(99), None),
        ("calls-without-end", _too_many, None),
        *((f"health/{service or 'server'}", _health(service), None) for service in SERVICES),
        ("health/watch", _watch, None),
        ("health/unknown", lambda stage: _call_health(stage, "Check", "greylag.v1.Admin"), "NOT_FOUND"),
    ]  # fmt: skip
    return named("transport", rows)
