"""Calls as any program may make them: bytes that no stub would send, and answers as they arrive."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from coordinator.conformance.answer import AnsweredError, WireAnswer
from protocol.v1 import catalog_pb2 as catalog
from protocol.v1 import intake_pb2 as intake
from protocol.v1 import log_pb2 as log
from protocol.v1.chunk_pb2 import Chunk
from protocol.wire.chunks import MAX_MESSAGE_BYTES
from protocol.wire.grpc_client import connect
from protocol.wire.grpc_status import DOMAIN

DEADLINE_S = 30.0
REPLIES: dict[str, type[Message]] = {
    "Intake/Enrol": intake.EnrolReply, "Intake/Begin": intake.BeginReply, "Intake/Put": intake.PutReply,
    "Intake/Commit": intake.CommitReply, "Intake/Status": intake.StatusReply, "Intake/Bind": intake.BindReply,
    "Catalog/GetPool": catalog.GetPoolReply, "Catalog/GetRelease": catalog.GetReleaseReply,
    "Catalog/GetBundle": catalog.GetBundleReply, "Catalog/Fetch": Chunk,
    "Log/GetCheckpoint": log.GetCheckpointReply, "Log/GetInclusion": log.GetInclusionReply,
    "Log/GetConsistency": log.GetConsistencyReply, "Log/GetLeaves": log.GetLeavesReply,
    "Log/AddCosignature": log.AddCosignatureReply,
}  # fmt: skip
"""Every method that a coordinator has, and with what it replies."""
# Nothing is tried again and nothing is held back here: what a server does with it is the question.
_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


class Wire:
    """A connection to a coordinator."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def stream(
        self, method: str, requests: Iterable[Message | bytes], *, deadline_s: float = DEADLINE_S, **options: Any
    ) -> list[Any]:
        """Send messages to a method, and return all that it replies (`AnsweredError`)."""
        reply = REPLIES.get(method)
        call = self._opened(f"greylag.v1.{method}", reply.FromString if reply else bytes)
        try:
            return list(call(iter(requests), timeout=deadline_s, **options))
        except grpc.RpcError as error:
            raise AnsweredError(_answer(error)) from error

    def ask(self, method: str, request: Message | bytes, **options: Any) -> Any:
        """Send one message, and return the one reply (`AnsweredError`)."""
        return self.stream(method, [request], **options)[0]

    def at(self, path: str, raw: bytes = b"") -> bytes:
        """Send bytes to any path, and return the one reply (`AnsweredError`)."""
        try:
            return next(iter(self._opened(path, bytes)(iter([raw]), timeout=DEADLINE_S)))
        except grpc.RpcError as error:
            raise AnsweredError(_answer(error)) from error

    def held(self, method: str, requests: Iterable[Message | bytes]) -> Any:
        """Begin a call, and return it unfinished."""
        return self._opened(f"greylag.v1.{method}", bytes)(iter(requests), timeout=DEADLINE_S)

    def _opened(self, path: str, read: Callable[[bytes], Any]) -> Any:
        return self.channel.stream_stream(f"/{path}", request_serializer=_bytes, response_deserializer=read)


@contextmanager
def connected(address: str, ca: Path | None) -> Iterator[Wire]:
    """Connect to `host:port`, as `protocol.wire.grpc_client.connect` does."""
    with connect(address, ca, _OPTIONS) as channel:
        yield Wire(channel)


def _bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _answer(error: grpc.RpcError) -> WireAnswer:
    call: Any = error  # what a stub raises is a call, too
    info = error_details_pb2.ErrorInfo()
    try:
        status = rpc_status.from_call(call)
        ours = status is not None and any(each.Unpack(info) and info.domain == DOMAIN for each in status.details)
    except (DecodeError, ValueError):
        ours = False
    details, name = call.details() or "", call.code().name
    return WireAnswer(info.reason, details, info.metadata["hint"], name) if ours else WireAnswer("", details, "", name)
