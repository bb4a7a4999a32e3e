import asyncio
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.v1.catalog_pb2 import FetchRequest, GetPoolRequest, GetReleaseRequest
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.wire import grpc_server
from protocol.wire.grpc_client import connect
from protocol.wire.grpc_server import Listen, check_listen, serve, to_end
from protocol.wire.grpc_status import from_rpc_error
from protocol.wire.health import Health
from tests.protocol.serving import LOOPBACK, SERVICES, Behaviour, chunks, make_authority, run, untyped

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
KINDS = ["unary", "client stream", "server stream"]


def call(kind: str, port: int) -> Any:
    with connect(f"127.0.0.1:{port}") as channel:
        match kind:
            case "unary":
                return CatalogStub(channel).GetPool(GetPoolRequest(), timeout=20).envelope
            case "client stream":
                return IntakeStub(channel).Put(chunks(3), timeout=20).offset
            case _:
                return [chunk.data for chunk in CatalogStub(channel).Fetch(FetchRequest(), timeout=20)]


def failure(kind: str, error: Exception, counted: list[Code] | None = None) -> GreylagError:
    with pytest.raises(GreylagError) as failed:
        run(Behaviour(error=error), lambda port: call(kind, port), counted=counted)
    return failed.value


def health(port: int, service: str) -> Any:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return (
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status
        )


# Calls.


@pytest.mark.parametrize(("kind", "answer"), list(zip(KINDS, [b"envelope", 15, [b"first", b"second"]], strict=True)))
def test_each_kind_of_call_is_answered(kind: str, answer: Any) -> None:
    counted: list[Code] = []
    assert run(Behaviour(), lambda port: call(kind, port), counted=counted) == answer
    assert counted == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_arrives_with_its_code_and_hint_and_is_counted(kind: str) -> None:
    counted: list[Code] = []
    error = failure(kind, Refused(Code.QUOTA, "Eight experts are in.", "Withdraw one."), counted)
    assert isinstance(error, Refused)
    assert (error.code, error.message, error.hint) == (Code.QUOTA, "Eight experts are in.", "Withdraw one.")
    assert counted == [Code.QUOTA]


def test_every_code_comes_out_as_it_went_in() -> None:
    """The whole table, over one connection."""
    behaviour, counted = Behaviour(), list[Code]()

    def ask(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for code in Code:
                behaviour.error = code.family(code, f"It was {code.name}.", f"Do {code.name}.")
                with pytest.raises(grpc.RpcError) as failed:
                    CatalogStub(channel).GetPool(GetPoolRequest(), timeout=20)
                error = from_rpc_error(failed.value, "the other side")
                assert type(error) is type(behaviour.error)
                assert (error.code, error.message, error.hint) == (code, f"It was {code.name}.", f"Do {code.name}.")

    run(behaviour, ask, counted=counted)
    assert counted == list(Code)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exception", [KeyError("planted secret"), OSError(5, "planted secret"), AssertionError])
def test_an_unexpected_exception_does_not_leak(kind: str, exception: Exception) -> None:
    counted: list[Code] = []
    with structlog.testing.capture_logs() as logs:
        error = failure(kind, exception, counted)
    assert isinstance(error, Unavailable)
    assert error.code is Code.INTERNAL
    cause = error.__cause__
    assert isinstance(cause, grpc.Call)
    heard = f"{error} {cause.details()} {cause.trailing_metadata()} {cause.debug_error_string()}"
    for private in ("planted", "KeyError", "OSError", "AssertionError", __file__):
        assert private not in heard
    assert counted == [Code.INTERNAL]
    assert [log["log_level"] for log in logs if log["event"] == "failed"] == ["error"]


def test_an_abort_by_a_handler_itself_passes() -> None:
    class Aborting(Behaviour):
        async def GetPool(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "by hand")

    counted: list[Code] = []
    with pytest.raises(Refused, match="OUT_OF_RANGE: by hand"):
        run(Aborting(), lambda port: call("unary", port), counted=counted)
    assert counted == []


@pytest.mark.parametrize("method", ["Catalog/GetRelease", "Intake/Put", "Catalog/Fetch"])
def test_garbage_on_the_wire_is_refused(method: str) -> None:
    def ask(port: int) -> None:
        with connect(f"127.0.0.1:{port}") as channel:
            if method.endswith("Put"):
                untyped(channel).stream_unary(f"/greylag.v1.{method}")(iter([b"\xff" * 9]), timeout=20)
            elif method.endswith("Fetch"):
                list(untyped(channel).unary_stream(f"/greylag.v1.{method}")(b"\xff" * 9, timeout=20))
            else:
                untyped(channel).unary_unary(f"/greylag.v1.{method}")(b"\xff" * 9, timeout=20)

    counted: list[Code] = []
    with pytest.raises(Refused, match="cannot be parsed") as refused:
        run(Behaviour(), ask, counted=counted)
    assert refused.value.code is Code.BAD_WIRE
    assert counted == [Code.BAD_WIRE]


def test_an_unknown_method_is_refused() -> None:
    def ask(port: int) -> None:
        with connect(f"127.0.0.1:{port}") as channel:
            untyped(channel).unary_unary("/greylag.v1.Catalog/Nothing")(b"", timeout=20)

    with pytest.raises(Refused, match="UNIMPLEMENTED") as refused:
        run(Behaviour(), ask)
    assert refused.value.code is Code.BAD_WIRE


def test_a_method_without_behaviour_says_nothing_of_its_insides() -> None:
    def ask(port: int) -> None:
        with connect(f"127.0.0.1:{port}") as channel:
            CatalogStub(channel).GetRelease(GetReleaseRequest(), timeout=20)

    with pytest.raises(Unavailable) as failed:
        run(Behaviour(), ask)
    assert failed.value.code is Code.INTERNAL


def test_a_message_that_is_too_large_is_refused_before_it_is_read() -> None:
    behaviour = Behaviour()

    def ask(port: int) -> str:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as failed:
            untyped(channel).unary_unary("/greylag.v1.Catalog/GetPool")(bytes(3 << 20), timeout=20)
        return str(failed.value)

    assert "RESOURCE_EXHAUSTED" in run(behaviour, ask)
    assert behaviour.calls == 0


def test_one_call_too_many_is_told_to_come_back() -> None:
    behaviour = Behaviour(wait_s=1.0)

    def ask(port: int) -> Any:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(call, "unary", port)
            assert behaviour.entered.wait(20)
            with pytest.raises(Unavailable) as failed:
                call("unary", port)
            return failed.value.code, first.result()

    listen = Listen("127.0.0.1:0", max_concurrent_calls=1)
    assert run(behaviour, ask, listen) == (Code.BUSY, b"envelope")


# Health and the end.


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_is_served(service: str) -> None:
    assert run(Behaviour(), lambda port: health(port, service)) == SERVING


def test_health_of_an_unknown_service_is_not_found() -> None:
    def ask(port: int) -> str:
        with pytest.raises(grpc.RpcError) as failed:
            health(port, "greylag.v1.Nothing")
        return str(failed.value)

    assert "NOT_FOUND" in run(Behaviour(), ask)


def test_who_watches_health_is_told_of_changes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.wire.health._LOOK_S", 0.02)
    well, looked, stopped = threading.Event(), list[bool](), asyncio.Event()

    def healthy() -> bool:
        looked.append(well.is_set())
        if looked.count(False) == 3:  # it was looked at, and nothing had changed
            well.set()
        return looked[-1]

    async def watched(service: str) -> list[Any]:
        said: list[Any] = []
        answers = Health({"there"}, healthy, stopped).Watch(health_pb2.HealthCheckRequest(service=service), context)
        async for answer in answers:
            said.append(answer.status)
            if answer.status != NOT_SERVING:
                stopped.set()
        return said

    context: Any = None
    assert asyncio.run(asyncio.wait_for(watched("there"), 20)) == [NOT_SERVING, SERVING, NOT_SERVING]
    assert looked[:4] == [False, False, False, True]
    assert asyncio.run(asyncio.wait_for(watched("elsewhere"), 20)) == [health_pb2.HealthCheckResponse.SERVICE_UNKNOWN]


def test_who_watches_health_is_told_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "DRAIN_S", 0.3)  # a watch never ends by itself

    def ask(port: int) -> list[Any]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
            first = next(watch).status
            os.kill(os.getpid(), signal.SIGTERM)
            return [first, next(watch).status]

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run(Behaviour(), ask) == [SERVING, NOT_SERVING]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_lets_calls_in_flight_finish(number: signal.Signals) -> None:
    behaviour = Behaviour(wait_s=0.7)
    results: list[Any] = []

    def ask(port: int) -> None:
        with ThreadPoolExecutor(1) as pool:
            inside = pool.submit(call, "unary", port)
            assert behaviour.entered.wait(20)
            os.kill(os.getpid(), number)
            results.append(inside.result())
        with socket.socket() as late:
            results.append(late.connect_ex(("127.0.0.1", port)) != 0)

    async def main() -> None:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(LOOPBACK, behaviour.register, on_ready=ready.set_result))
        client = asyncio.create_task(asyncio.to_thread(ask, await ready))
        await asyncio.wait_for(serving, 20)  # ends by itself
        await client

    before = signal.signal(number, lambda *_: results.append("not handled"))
    try:
        asyncio.run(main())
    finally:
        signal.signal(number, before)
    assert results == [b"envelope", True]


def test_a_call_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "DRAIN_S", 0.2)
    behaviour = Behaviour(wait_s=60.0)
    ended = threading.Event()

    def hang(port: int) -> None:
        with pytest.raises(Unavailable):
            call("unary", port)
        ended.set()

    def ask(port: int) -> None:
        threading.Thread(target=hang, args=(port,), daemon=True).start()
        assert behaviour.entered.wait(20)

    run(behaviour, ask)
    assert ended.wait(20)


# Where a server listens.


def refusal(listen: Listen) -> Refused:
    with pytest.raises(Refused) as refused:
        run(Behaviour(), lambda port: None, listen)
    assert refused.value.code is Code.SETTINGS_INVALID
    assert "Errno" not in refused.value.message
    return refused.value


def test_a_port_in_use_is_refused_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # a second server must not share it even so
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error = refusal(Listen(address))
    assert error.message == f"Cannot listen on {address}."
    assert "another process" in error.hint


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.0.0.1:0", "example.org:443"])
def test_plain_text_is_not_offered_to_other_machines(address: str) -> None:
    assert "needs TLS" in refusal(Listen(address)).message


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    assert "is not an address" in refusal(Listen(address)).message


def test_half_a_tls_setting_never_means_plain_text(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "tls")
    for half in (Listen("127.0.0.1:0", authority.certificate), Listen("127.0.0.1:0", key=authority.key)):
        assert "a certificate or its key is missing" in refusal(half).message


def test_certificates_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    authority, other, hello = make_authority(tmp_path / "tls"), make_authority(tmp_path / "other"), tmp_path / "hello"
    hello.write_text("hello")
    for certificate, key in (
        (tmp_path / "none.pem", authority.key),
        (hello, authority.key),
        (authority.certificate, hello),
        (authority.certificate, other.key),
    ):
        error = refusal(Listen("127.0.0.1:0", certificate, key))
        assert f"{certificate} with the key {key} cannot be used" in error.message
        assert ("they are no pair in PEM format" in error.message) == certificate.exists()


def test_a_key_behind_a_passphrase_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "tls")
    key = load_pem_private_key(authority.key.read_bytes(), None)
    authority.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    assert "cannot be used" in refusal(authority.listen()).message


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_an_address_is_tried_before_anything_that_takes_long_and_is_free_again(address: str) -> None:
    check_listen(Listen(address))
    family = socket.AF_INET6 if address.startswith("[") else socket.AF_INET
    with socket.create_server((address.rpartition(":")[0].strip("[]"), 0), family=family) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match="Cannot listen on") as refused:
            check_listen(Listen(f"{address.rpartition(':')[0]}:{port}"))
    assert refused.value.code is Code.SETTINGS_INVALID
    check_listen(Listen(f"{address.rpartition(':')[0]}:{port}"))


# Threads.


def test_work_is_over_before_its_caller_goes_on_even_if_he_gives_up() -> None:
    begun, may_end, over = threading.Event(), threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert may_end.wait(20)
        over.set()
        return "done"

    async def main() -> str:
        task = asyncio.create_task(to_end(work))
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        await asyncio.sleep(0)
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert over.is_set(), "whoever shut others out lets go only now"
        return await to_end(work)

    assert asyncio.run(main()) == "done"
