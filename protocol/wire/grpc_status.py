"""Errors across gRPC: a code of our table travels as google.rpc.ErrorInfo (AIP-193)."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.printable import printable

DOMAIN = "greylag"
_MAX_TEXT = 1000  # gRPC refuses more than 16 KiB of trailing metadata, and carries a sentence twice


def to_status(error: GreylagError) -> grpc.Status:
    """Write an error for the wire."""
    info = error_details_pb2.ErrorInfo(reason=error.code.name, domain=DOMAIN, metadata={"hint": plain(error.hint)})
    status = status_pb2.Status(code=grpc.StatusCode[error.code.fate.grpc].value[0], message=plain(error.message))
    status.details.add().Pack(info)
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.RpcError, address: str) -> GreylagError:
    """Read the error of a failed call to an address; what carries no code of ours is the transport's fault."""
    call: Any = error  # what a stub raises is a call, too
    info = error_details_pb2.ErrorInfo()
    try:
        status = rpc_status.from_call(call) or status_pb2.Status()
        ours = any(packed.Unpack(info) and info.domain == DOMAIN for packed in status.details)
    except (DecodeError, ValueError):  # ValueError: the details say other than the status
        ours = False
    if not ours or info.reason not in Code.__members__:
        return _from_transport(call.code(), plain(call.details() or "").rstrip(".!"), address)
    code = Code[info.reason]
    return code.family(code, plain(status.message), plain(info.metadata.get("hint", "")))


def _from_transport(code: grpc.StatusCode, details: str, address: str) -> GreylagError:
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        hint = "Check the address, and whether the program there runs; then run the command again."
        return Unavailable(Code.UNREACHABLE, f"{address} does not answer ({code.name}).", hint)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        what = f"A message to or from {address} is too large: {details}."
        return Refused(Code.MESSAGE_TOO_LARGE, what, "Send less at once, such as fewer or shorter inputs.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Unavailable(Code.BUSY, f"{address} is busy: {details}.", "Try again in a minute.")
    hint = "Is it the right program's address, and do both sides run the same version?"
    return Refused(Code.BAD_WIRE, f"{address} answered {code.name}: {details}.", hint)


def plain(text: str) -> str:
    """Make a stranger's text one line that a terminal may show, and end it somewhere."""
    shown = printable(text[: _MAX_TEXT + 1]).replace("\n", " ").replace("\t", " ")
    return shown if len(shown) <= _MAX_TEXT else shown[: _MAX_TEXT - 3] + "..."
