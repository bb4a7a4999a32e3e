import json
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.release import MAX_RELEASE_BYTES
from protocol.v1 import catalog_pb2, intake_pb2, log_pb2, query_pb2
from protocol.v1.catalog_pb2 import GetPoolRequest
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.wire import grpc_client, reachability
from protocol.wire.chunks import MAX_MESSAGE_BYTES, MAX_REPLY_BYTES
from protocol.wire.grpc_client import OPTIONS, check_address, connect, is_loopback
from tests.protocol.serving import Authority, Behaviour, make_authority, run, untyped
from tests.protocol.strategies import many


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls") / "own")


def get_pool(address: str, ca: Path | None = None, *, timeout_s: float = 20.0) -> bytes:
    with connect(address, ca) as open_channel:
        return CatalogStub(open_channel).GetPool(GetPoolRequest(), timeout=timeout_s).envelope


def failure(address: str, ca: Path | None = None, *, timeout_s: float = 20.0) -> GreylagError:
    with pytest.raises(GreylagError) as failed:
        get_pool(address, ca, timeout_s=timeout_s)
    assert address.partition(":")[0] in failed.value.message
    assert failed.value.hint
    return failed.value


# Addresses.


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:0", "[::1]:65535", "example.org:443", "::1:50051"])
def test_an_address_is_host_and_port(address: str) -> None:
    host, port = check_address(address)
    assert address.replace("[", "").replace("]", "") == f"{host}:{port}"


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":1",
        "host",
        "host:",
        "host:x",
        "host:-1",
        "host:65536",
        "host:1.0",
        "host: 1",
        "host:²",
        "host:\u0661",
        "a:" + "1" * 5000,
    ],
)
def test_what_is_no_address_is_refused_with_and_without_ca(address: str, tmp_path: Path) -> None:
    for ca in (None, tmp_path / "ca.pem"):
        with pytest.raises(Refused, match="is not an address") as refused, connect(address, ca):
            pass
        assert refused.value.code is Code.SETTINGS_INVALID


@many
@given(st.text(max_size=30) | st.text("0123456789.:[]abf", max_size=30))
def test_any_address_is_read_or_refused(address: str) -> None:
    try:
        _, port = check_address(address)
        assert int(address.rpartition(":")[2]) == port
        is_loopback(address)
    except Refused as refused:
        assert refused.code is Code.SETTINGS_INVALID  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1"])
def test_loopback_stays_on_this_machine(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:1",
        "[::]:1",
        "10.0.0.1:1",
        "example.org:1",
        "localhost.example.org:1",
        "127.0.0.1.example.org:1",
        "unix:/x:1",
        "128.0.0.1:1",
        "2130706433:1",
    ],
)
def test_everything_else_leaves_it(address: str) -> None:
    assert not is_loopback(address)


# Calls.


def test_a_call_over_plain_loopback() -> None:
    assert run(Behaviour(), lambda port: get_pool(f"127.0.0.1:{port}")) == b"envelope"


def test_a_call_over_tls(authority: Authority) -> None:
    ask = lambda port: get_pool(f"127.0.0.1:{port}", authority.ca)  # noqa: E731 - a name for the line below
    assert run(Behaviour(), ask, authority.listen()) == b"envelope"


def is_untrusted(error: GreylagError, sentence: str, hint: str) -> None:
    assert isinstance(error, Refused)
    assert error.code is Code.UNTRUSTED
    assert sentence in error.message
    assert hint in error.hint


def is_unreachable(error: GreylagError, sentence: str, hint: str) -> None:
    assert isinstance(error, Unavailable)
    assert error.code is Code.UNREACHABLE
    assert sentence in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("host", "days", "sentence", "hint"),
    [
        ("10.0.0.1", 1, "is for another host name", "Use a name that the certificate holds"),
        ("127.0.0.1", -1, "has expired or is not valid yet", "clock"),
        ("127.0.0.1", 99, "is not by the CA in", "right CA certificate"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_told(
    authority: Authority, tmp_path: Path, host: str, days: int, sentence: str, hint: str
) -> None:
    behaviour, other = Behaviour(), make_authority(tmp_path / "other", host=host, days=days)
    ca = authority.ca if days == 99 else other.ca
    is_untrusted(run(behaviour, lambda port: failure(f"127.0.0.1:{port}", ca), other.listen()), sentence, hint)
    assert behaviour.calls == 0


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On loopback no CA means plain text, so another name for this machine is needed."""
    monkeypatch.setattr(grpc_client, "is_loopback", lambda address: False)


@pytest.mark.usefixtures("elsewhere")
def test_a_certificate_by_nobody_known_asks_for_a_ca(authority: Authority) -> None:
    error = run(Behaviour(), lambda port: failure(f"127.0.0.1:{port}"), authority.listen())
    is_untrusted(error, "is by nobody whom this machine trusts", "--ca")


@pytest.mark.usefixtures("elsewhere")
def test_plain_text_is_never_spoken_to_another_machine() -> None:
    behaviour = Behaviour()
    error = run(behaviour, lambda port: failure(f"127.0.0.1:{port}"))
    is_untrusted(error, "does not speak TLS", "leave --ca out")
    assert behaviour.calls == 0


def test_plain_text_to_a_tls_server_does_not_get_through(authority: Authority) -> None:
    behaviour = Behaviour()
    error = run(behaviour, lambda port: failure(f"127.0.0.1:{port}"), authority.listen())
    is_untrusted(error, "speaks TLS, and plain text was tried", "--ca")
    assert behaviour.calls == 0


def test_a_port_where_nothing_listens_is_told(authority: Authority) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        for ca in (None, authority.ca):
            error = failure(f"127.0.0.1:{free.getsockname()[1]}", ca)
            is_unreachable(error, "Nothing listens at", "Check the port")


def test_a_name_that_does_not_exist_is_told(authority: Authority) -> None:
    error = failure("no-such-host.invalid:1", authority.ca, timeout_s=10)
    is_unreachable(error, "There is no host by the name of no-such-host.invalid", "Check the address")


@pytest.mark.parametrize("tls", [False, True])
def test_who_takes_a_connection_and_says_nothing_is_given_up(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, *, tls: bool
) -> None:
    monkeypatch.setattr(reachability, "_LOOK_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = failure(f"127.0.0.1:{silent.getsockname()[1]}", authority.ca if tls else None, timeout_s=0.3)
    is_unreachable(error, "does not answer", "Check the address")


def test_a_deadline_passes(authority: Authority) -> None:
    behaviour = Behaviour(wait_s=2.0)
    start = time.monotonic()
    error = run(behaviour, lambda port: failure(f"127.0.0.1:{port}", timeout_s=0.3))
    assert isinstance(error, Unavailable)
    assert error.code is Code.UNREACHABLE
    assert "DEADLINE_EXCEEDED" in error.message
    assert time.monotonic() - start < 2


def test_a_ca_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for ca in (tmp_path / "none.pem", tmp_path):
        with pytest.raises(Refused) as refused, connect("127.0.0.1:1", ca):
            pass
        assert refused.value.code is Code.SETTINGS_INVALID
        assert str(ca) in refused.value.message


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_ca_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(Refused) as refused, connect("127.0.0.1:1", tmp_path / "ca.pem"):
        pass
    assert refused.value.code is Code.SETTINGS_INVALID
    assert str(tmp_path / "ca.pem") in refused.value.message


def test_a_reply_that_is_too_large_is_refused() -> None:
    def ask(port: int) -> GreylagError:
        return failure(f"127.0.0.1:{port}")

    error = run(Behaviour(reply=bytes(MAX_REPLY_BYTES + 1)), ask)
    assert isinstance(error, Refused)
    assert error.code is Code.MESSAGE_TOO_LARGE


def test_a_long_release_fits_into_a_reply() -> None:
    envelope = bytes(MAX_RELEASE_BYTES)
    assert run(Behaviour(reply=envelope), lambda port: get_pool(f"127.0.0.1:{port}")) == envelope


def test_a_request_that_is_too_large_is_not_sent() -> None:
    def ask(port: int) -> None:
        with connect(f"127.0.0.1:{port}") as open_channel:
            untyped(open_channel).unary_unary("/greylag.v1.Catalog/GetPool")(bytes(MAX_MESSAGE_BYTES + 1), timeout=10)

    with pytest.raises(Refused) as refused:
        run(Behaviour(), ask)
    assert refused.value.code is Code.MESSAGE_TOO_LARGE


def test_other_errors_pass_through_a_connection() -> None:
    with pytest.raises(ValueError, match="mine"), connect("127.0.0.1:1"):
        raise ValueError("mine")


# The retry policy.


def test_only_calls_that_may_be_repeated_are_repeated() -> None:
    (policy,) = json.loads(str(dict(OPTIONS)["grpc.service_config"]))["methodConfig"]
    named = {(name["service"], name.get("method")) for name in policy["name"]}
    services: dict[str, Any] = {}
    for module in (catalog_pb2, intake_pb2, log_pb2, query_pb2):
        services |= {service.full_name: service for service in module.DESCRIPTOR.services_by_name.values()}
    repeated = set()
    for service, method in named:
        methods = services[service].methods_by_name
        repeated |= {(service, name) for name in ([method] if method else methods)}
        assert method is None or method in methods
    every = {(name, method) for name, service in services.items() for method in service.methods_by_name}
    assert every - repeated == {("greylag.v1.Intake", "Put")}
    assert policy["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]


def test_the_policy_is_followed() -> None:
    behaviour = Behaviour(error=Unavailable(Code.BUSY, "Later.", "Wait."))
    with pytest.raises(Unavailable, match="Later"):
        run(behaviour, lambda port: get_pool(f"127.0.0.1:{port}"))
    assert behaviour.calls == 5


def test_a_refusal_is_not_repeated() -> None:
    behaviour = Behaviour(error=Refused(Code.QUOTA, "Full."))
    with pytest.raises(Refused, match="Full"):
        run(behaviour, lambda port: get_pool(f"127.0.0.1:{port}"))
    assert behaviour.calls == 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_who_goes_away_in_a_handshake_is_not_taken_for_a_stranger(how: str) -> None:
    def hang_up(listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            if how == "reset":
                connection.recv(1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
        assert reachability.find_fault(f"127.0.0.1:{listener.getsockname()[1]}", None, tls=True) is None


def test_a_certificate_that_is_right_is_no_fault(authority: Authority) -> None:
    def look(port: int) -> GreylagError | None:
        return reachability.find_fault(f"127.0.0.1:{port}", authority.ca, tls=True)

    assert run(Behaviour(), look, authority.listen()) is None
