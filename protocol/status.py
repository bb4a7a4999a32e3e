"""Errors across gRPC: a code of our table travels as google.rpc.ErrorInfo (AIP-193)."""

from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as PackedMessage
from google.rpc import error_details_pb2, status_pb2

from protocol.errors import Code, GreylagError, Refused, Unavailable

DOMAIN = "greylag"
_DETAILS_KEY = "grpc-status-details-bin"


class RpcStatus(NamedTuple):
    """What a server aborts a call with."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def to_status(error: GreylagError) -> RpcStatus:
    """Write an error for the wire."""
    code = grpc.StatusCode[error.code.fate.grpc]
    info = error_details_pb2.ErrorInfo(reason=error.code.name, domain=DOMAIN, metadata={"hint": error.hint})
    packed = PackedMessage()
    packed.Pack(info)
    status = status_pb2.Status(code=code.value[0], message=error.message, details=[packed])
    return RpcStatus(code, error.message, ((_DETAILS_KEY, status.SerializeToString()),))


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
    status = status_pb2.Status.FromString(raw)
    for packed in status.details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info) and info.domain == DOMAIN and info.reason in Code.__members__:
            code = Code[info.reason]
            family = Unavailable if code.fate.grpc == "UNAVAILABLE" or code is Code.STORAGE_FULL else Refused
            return family(code, status.message, info.metadata.get("hint", ""))
    return None


def _from_transport(code: grpc.StatusCode, details: str, address: str) -> GreylagError:
    if "CERTIFICATE_VERIFY_FAILED" in details or "SSL" in details:
        return Refused(
            Code.UNTRUSTED,
            f"The certificate of {address} is not one that this machine trusts.",
            "Give the operator's CA certificate with --ca.",
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return Unavailable(
            Code.UNREACHABLE,
            f"{address} does not answer ({code.name}).",
            "Check the address, then run the command again.",
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Unavailable(Code.BUSY, f"{address} is busy: {details}.", "Try again in a minute.")
    return Refused(Code.BAD_WIRE, f"{address} answered {code.name}: {details}.", "Do both sides run the same version?")
