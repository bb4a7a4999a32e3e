from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ADVICE, Code, GreylagError, Refused, Unavailable
from protocol.wire.grpc_status import from_rpc_error, to_status
from tests.protocol.strategies import few, many, mutations

HERE = "127.0.0.1:9"
DETAILS = "grpc-status-details-bin"
FULL: Any = to_status(Refused(Code.QUOTA, "Full.", "Wait."))


class FailedCall(grpc.RpcError):
    """What a stub raises."""

    def __init__(self, code: grpc.StatusCode, details: str | None = "", metadata: Any = ()) -> None:
        super().__init__(details)
        self._all = (code, details, metadata)

    def code(self) -> grpc.StatusCode:
        return self._all[0]

    def details(self) -> str | None:
        return self._all[1]

    def trailing_metadata(self) -> Any:
        return self._all[2]


def across(error: GreylagError) -> GreylagError:
    status = to_status(error)
    return from_rpc_error(FailedCall(status.code, status.details, status.trailing_metadata), HERE)


def transport(code: str, details: str | None = "") -> GreylagError:
    return from_rpc_error(FailedCall(grpc.StatusCode[code], details), HERE)


printable = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=900)


@few
@given(st.sampled_from(Code), printable, printable)
def test_sentences_come_back_as_they_went(code: Code, message: str, hint: str) -> None:
    again = across(code.family(code, message, hint))
    assert (again.code, again.message, again.hint) == (code, message, hint or ADVICE.get(code, ""))


@pytest.mark.parametrize("text", ["x" * 10**6, "é" * 10**6, "\x1b[2J" * 9000, "a\nb\r\x00", "\ud800", "\u202eexe"])
def test_no_sentence_is_too_long_or_too_odd_to_travel(text: str) -> None:
    status = to_status(Refused(Code.QUOTA, text, text))
    assert len(status.details.encode()) + sum(len(value) for _, value in status.trailing_metadata or ()) < 10_000
    again = across(Refused(Code.QUOTA, text, text))
    assert again.code is Code.QUOTA
    assert again.message.isprintable()
    assert again.hint.isprintable()


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07", "a\nerror: forged", "x" * 10**6])
def test_a_hostile_server_does_not_steer_a_terminal(text: str) -> None:
    hostile = status_pb2.Status(code=grpc.StatusCode.ABORTED.value[0], message=text)
    info = error_details_pb2.ErrorInfo(reason="QUOTA", domain="greylag", metadata={"hint": text})
    hostile.details.add().Pack(info)
    metadata = ((DETAILS, hostile.SerializeToString()),)
    for call in (FailedCall(grpc.StatusCode.ABORTED, text, metadata), FailedCall(grpc.StatusCode.ABORTED, text)):
        error = from_rpc_error(call, HERE)
        assert error.message.isprintable()
        assert error.hint.isprintable()
        assert len(error.message) < 2000


@many
@given(mutations(dict(FULL.trailing_metadata)[DETAILS]) | st.binary(max_size=50))
def test_garbage_details_are_the_transports_fault(raw: bytes) -> None:
    error = from_rpc_error(FailedCall(grpc.StatusCode.ABORTED, "why", ((DETAILS, raw),)), HERE)
    assert isinstance(error, GreylagError)
    assert error.message.isprintable()


def test_details_that_contradict_the_status_are_not_believed() -> None:
    """What a proxy or an older library reads is the status; both must be told the same."""
    refusal = to_status(Refused(Code.QUOTA, "Full."))
    for code, details in ((grpc.StatusCode.ABORTED, "Full."), (refusal.code, "Empty.")):
        assert from_rpc_error(FailedCall(code, details, refusal.trailing_metadata), HERE).code is not Code.QUOTA


@pytest.mark.parametrize(("reason", "domain"), [("QUOTA", "example.org"), ("NO_SUCH_CODE", "greylag"), ("", "")])
def test_details_of_others_are_left_alone(reason: str, domain: str) -> None:
    status = status_pb2.Status(code=grpc.StatusCode.ABORTED.value[0], message="why")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    call = FailedCall(grpc.StatusCode.ABORTED, "why", (("other", b""), (DETAILS, status.SerializeToString())))
    error = from_rpc_error(call, HERE)
    assert error.code is Code.BAD_WIRE
    assert "ABORTED: why." in error.message


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"])
def test_no_answer_is_unreachable(code: str) -> None:
    error = transport(code, "Socket closed")
    assert isinstance(error, Unavailable)
    assert error.code is Code.UNREACHABLE
    assert HERE in error.message


@pytest.mark.parametrize("code", ["UNIMPLEMENTED", "UNKNOWN", "INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND"])
@pytest.mark.parametrize("details", ["odd.", "SSL is mentioned", None])
def test_another_answer_is_bad_wire(code: str, details: str | None) -> None:
    error = transport(code, details)
    assert isinstance(error, Refused)
    assert error.code is Code.BAD_WIRE
    assert code in error.message


def test_a_busy_server_is_tried_again_but_not_with_a_message_that_is_too_large() -> None:
    busy = transport("RESOURCE_EXHAUSTED", "Concurrent RPC limit exceeded!")
    assert isinstance(busy, Unavailable)
    assert busy.code is Code.BUSY
    large = transport("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (3 vs. 2)")
    assert isinstance(large, Refused)
    assert large.code is Code.MESSAGE_TOO_LARGE
