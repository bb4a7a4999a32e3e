"""Errors across gRPC: a code of our table travels as google.rpc.ErrorInfo (AIP-193)."""

from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from protocol.errors import Code, GreylagError, Refused, Unavailable

DOMAIN = "greylag"
_DETAILS_KEY = "grpc-status-details-bin"
_MAX_TEXT = 1000  # gRPC refuses more than 16 KiB of trailing metadata, and carries a sentence twice


class RpcStatus(NamedTuple):
    """What a server aborts a call with."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def to_status(error: GreylagError) -> RpcStatus:
    """Write an error for the wire."""
    code, message = grpc.StatusCode[error.code.fate.grpc], plain(error.message)
    info = error_details_pb2.ErrorInfo(reason=error.code.name, domain=DOMAIN, metadata={"hint": plain(error.hint)})
    packed = PackedMessage()
    packed.Pack(info)
    status = status_pb2.Status(code=code.value[0], message=message, details=[packed])
    return RpcStatus(code, message, ((_DETAILS_KEY, status.SerializeToString()),))


def from_rpc_error(error: grpc.RpcError, address: str) -> GreylagError:
    """Read the error of a failed call; what carries no code of ours is the transport's fault.

    Args:
        error: As raised by a stub, synchronous or asyncio.
        address: Whom the call went to, for the sentence.
    """
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key == _DETAILS_KEY and (ours := _from_details(value)):
            return ours
    return _from_transport(error.code(), error.details() or "", address)


def _from_details(raw: bytes) -> GreylagError | None:
    info = error_details_pb2.ErrorInfo()
    try:
        status = status_pb2.Status.FromString(raw)
        ours = any(packed.Unpack(info) and info.domain == DOMAIN for packed in status.details)
    except DecodeError:
        return None
    if not ours or info.reason not in Code.__members__:
        return None
    code = Code[info.reason]
    return code.family(code, plain(status.message), plain(info.metadata.get("hint", "")))


def _from_transport(code: grpc.StatusCode, details: str, address: str) -> GreylagError:
    details = plain(details).rstrip(".")
    if code is grpc.StatusCode.UNAVAILABLE and "WRONG_VERSION_NUMBER" in details:
        return Refused(
            Code.UNTRUSTED, f"{address} does not speak TLS.", "Check the address, and leave --ca out on loopback."
        )
    if code is grpc.StatusCode.UNAVAILABLE and _is_about_certificates(details):
        return Refused(
            Code.UNTRUSTED,
            f"The certificate of {address} is not one that this machine trusts.",
            "Give the operator's CA certificate with --ca.",
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return Unavailable(
            Code.UNREACHABLE,
            f"{address} does not answer ({code.name}).",
            "Check the address and, if TLS is spoken there, --ca; then run the command again.",
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return Refused(
            Code.MESSAGE_TOO_LARGE,
            f"A message to or from {address} is too large: {details}.",
            "Send less at once, such as fewer or shorter inputs.",
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Unavailable(Code.BUSY, f"{address} is busy: {details}.", "Try again in a minute.")
    return Refused(
        Code.BAD_WIRE,
        f"{address} answered {code.name}: {details.rstrip('.!')}.",
        "Is it the right program's address, and do both sides run the same version?",
    )


def _is_about_certificates(details: str) -> bool:
    return any(word in details for word in ("CERTIFICATE_VERIFY_FAILED", "SSL", "Hostname Verification"))


def plain(text: str) -> str:
    """Make a stranger's text fit for a terminal: one line, no control characters, an end."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[: _MAX_TEXT + 1])
    return shown if len(shown) <= _MAX_TEXT else shown[: _MAX_TEXT - 3] + "..."
