"""Peers that go silent, drip or do not read, over real loopback: they are given up, and nobody else waits for them."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, suppress
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protocol.errors import Code, Refused, Unavailable
from protocol.v1.catalog_pb2 import FetchRequest, GetPoolRequest
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.v1.chunk_pb2 import Chunk
from protocol.v1.intake_pb2 import PutRequest
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.wire import grpc_server, peer
from protocol.wire.grpc_client import connect
from protocol.wire.grpc_server import Listen, serve
from protocol.wire.places import Places, network_of
from tests.protocol.raw_http2 import RawClient, message, rude
from tests.protocol.serving import LOOPBACK, Behaviour, run

GET_POOL, FETCH, PUT = "greylag.v1.Catalog/GetPool", "greylag.v1.Catalog/Fetch", "greylag.v1.Intake/Put"
WATCH = "grpc.health.v1.Health/Watch"
FEW = Listen("127.0.0.1:0", max_concurrent_calls=4)
HASTY = Listen("127.0.0.1:0", idle_s=0.2)


def get_pool(port: int) -> bytes:
    with connect(f"127.0.0.1:{port}") as channel:
        return CatalogStub(channel).GetPool(GetPoolRequest(), timeout=20).envelope


def check(port: int) -> Any:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status


# Places.


def test_who_watches_health_keeps_nobody_out() -> None:
    def ask(port: int) -> None:
        with ExitStack() as stack:
            watchers = [stack.enter_context(rude(port)) for _ in range(3)]
            for watcher in watchers:
                for _ in range(20):
                    watcher.call(WATCH, health_pb2.HealthCheckRequest())
            assert not all(watcher.ended(*range(1, 40, 2), within_s=0.1) for watcher in watchers), "some do watch"
            assert check(port) == health_pb2.HealthCheckResponse.SERVING
            assert get_pool(port) == b"envelope"

    run(Behaviour(), ask, FEW)


def test_who_calls_and_asks_nothing_keeps_nobody_out() -> None:
    def ask(port: int) -> None:
        with rude(port) as silent:
            held = [silent.call(PUT) for _ in range(8)]
            assert silent.ended(*held[2:]), "one connection has a quarter of what may be on its way"
            assert not silent.ended(*held[:2], within_s=0.1)
            assert get_pool(port) == b"envelope"

    run(Behaviour(), ask, FEW)


async def taken(stack: AsyncExitStack, places: Places, peer: str) -> bool:
    with suppress(Unavailable):
        await stack.enter_async_context(places.one(peer))
        return True
    return False


def test_a_connection_has_a_share_and_an_address_another() -> None:
    async def take() -> None:
        places = Places(8)
        async with AsyncExitStack() as stack:
            assert [await taken(stack, places, "ipv4:192.0.2.1:1") for _ in range(3)] == [True, True, False]
            assert [await taken(stack, places, f"ipv4:192.0.2.1:{port}") for port in (2, 3, 4)] == [True, True, False]
        assert not places._taken
        assert not places._held
        async with places.one("ipv4:192.0.2.1:1"):
            assert len(places._taken) == 2

    asyncio.run(take())


def test_whoever_has_most_makes_room_for_who_has_less() -> None:
    """Two addresses hold all that there is; others get in one after the other, until all have nearly as much."""

    async def play() -> None:
        places, ended, barred = Places(8), list[str](), asyncio.Event()

        async def hold(peer: str) -> None:
            try:
                async with places.one(peer):
                    await barred.wait()
            except Unavailable:
                ended.append(peer)

        async def held(*peers: str) -> None:
            for each in peers:
                tasks.append(asyncio.create_task(hold(each)))
                await asyncio.sleep(0.01)

        tasks = list[asyncio.Task[None]]()
        await held(*(f"ipv4:192.0.2.{host}:{port}" for host in (1, 2) for port in (1, 2, 3, 4)))
        await held("ipv4:192.0.2.3:1", "ipv4:192.0.2.4:1")
        assert ended == ["ipv4:192.0.2.1:1", "ipv4:192.0.2.2:1"], "the oldest of each"
        await held("ipv4:192.0.2.3:2", "ipv4:192.0.2.3:3")
        assert ended[2:] == ["ipv4:192.0.2.1:2", "ipv4:192.0.2.3:3"], "nobody gets more than those who make room keep"
        barred.set()
        await asyncio.gather(*tasks)
        assert not places._taken
        assert not places._held

    asyncio.run(play())


def test_a_call_that_comes_too_late_by_itself_is_not_told_of_others() -> None:
    async def play() -> None:
        async with Places(4).one("ipv4:192.0.2.1:1"):
            raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(play())


def test_a_reader_whose_place_is_taken_back_is_told_so() -> None:
    """A stream of replies waits inside a generator, whose end is another exception than a call's."""

    async def play() -> None:
        places, waits = Places(1), asyncio.Event()

        async def replies() -> AsyncGenerator[int]:
            async with places.one("ipv4:192.0.2.1:1"):
                yield 1

        async def read() -> None:
            async with aclosing(replies()) as stream:
                async for _ in stream:
                    await waits.wait()

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        places._held[next(iter(places._held))] = "somebody", "else"  # who holds two more than a newcomer
        places._held[asyncio.timeout(None)] = "somebody", "else"
        async with places.one("ipv4:192.0.2.2:1"):
            with pytest.raises(Unavailable) as error:
                await asyncio.wait_for(reading, 5)
        assert error.value.code is Code.BUSY

    asyncio.run(play())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ipv4:192.0.2.1:1", "ipv4:192.0.2.1:2", True),
        ("ipv4:192.0.2.1:1", "ipv4:192.0.2.2:1", False),
        ("ipv6:%5B2001:db8::1%5D:1", "ipv6:%5B2001:db8::ffff:1%5D:2", True),
        ("ipv6:[2001:db8::1]:1", "ipv6:[2001:db8:0:1::1]:1", False),
        ("ipv6:%5B::ffff:192.0.2.1%5D:1", "ipv4:192.0.2.1:2", True),
        ("ipv6:%5B::ffff:192.0.2.1%5D:1", "ipv6:%5B::ffff:192.0.2.2%5D:1", False),
        ("unix:/a", "unix:/a", True),
    ],
)
def test_whose_an_address_is(one: str, other: str, *, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same


def test_the_share_of_an_address_is_counted_over_the_wire() -> None:
    behaviour = Behaviour(wait_s=20.0)

    def ask(port: int) -> None:
        with ExitStack() as stack:
            for source, places in (("127.0.0.2", [True, True, False]), ("127.0.0.3", [True, True, False])):
                for there in places:
                    client = stack.enter_context(rude(port, source=source))
                    assert client.ended(client.call(GET_POOL, GetPoolRequest()), within_s=0.1) is not there

    run(behaviour, ask, FEW)


# Deadlines.


def drip(client: RawClient, stream: int, pieces: Iterator[bytes]) -> None:
    """Send a piece at a time until the stream is over."""
    for piece in pieces:
        try:
            client.send(stream, piece)
        except OSError:
            return
        if client.ended(stream, within_s=0.02):
            return
    raise AssertionError("it was never given up")


@pytest.mark.parametrize("method", [GET_POOL, FETCH, PUT])
@pytest.mark.parametrize("how", ["silent", "a byte at a time"])
def test_a_request_that_does_not_come_is_given_up(method: str, how: str) -> None:
    counted: list[Code] = []

    def ask(port: int) -> None:
        with rude(port) as client:
            stream = client.call(method)
            if how == "silent":
                assert client.ended(stream)
            else:
                client.send(stream, message(b"", size=1000))
                drip(client, stream, iter([b"x"] * 200))

    run(Behaviour(), ask, HASTY, counted)
    assert counted == [Code.BUSY]


def test_messages_of_a_byte_each_are_given_up_like_silence() -> None:
    tiny = message(PutRequest(chunk=Chunk(data=b"x")).SerializeToString())
    counted: list[Code] = []

    def ask(port: int) -> None:
        with rude(port) as client:
            stream = client.call(PUT, PutRequest(), end=False)
            drip(client, stream, iter([tiny] * 200))

    run(Behaviour(), ask, HASTY, counted)
    assert counted == [Code.BUSY]


def test_who_sends_enough_may_take_his_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "LEAST_BYTES", 5)

    def slow() -> Iterator[PutRequest]:
        for _ in range(5):
            time.sleep(0.1)
            yield PutRequest(chunk=Chunk(data=b"12345"))

    def ask(port: int) -> int:
        with connect(f"127.0.0.1:{port}") as channel:
            return IntakeStub(channel).Put(slow(), timeout=20).offset

    assert run(Behaviour(), ask, HASTY) == 25


@pytest.mark.parametrize("method", [GET_POOL, FETCH])
def test_a_reply_that_is_not_taken_is_given_up_with_its_connection(method: str) -> None:
    """gRPC itself would keep reply and call for as long as the connection lives."""
    counted: list[Code] = []

    def ask(port: int) -> None:
        with rude(port, window=0) as client, rude(port) as other:
            client.call(method, FetchRequest() if method == FETCH else GetPoolRequest())
            client.socket.settimeout(10)
            while client.socket.recv(1 << 16):
                pass  # until it is hung up on
            assert get_pool(port) == b"envelope"
            assert other.ended(other.call(GET_POOL, GetPoolRequest())), "others keep their connections"

    run(Behaviour(), ask, HASTY, counted)
    assert counted == [Code.BUSY]


def test_a_call_ends_after_all_however_busy_it_is() -> None:
    chunk = message(PutRequest(chunk=Chunk(data=bytes(1 << 10))).SerializeToString())
    counted: list[Code] = []

    def ask(port: int) -> None:
        with rude(port) as client:
            drip(client, client.call(PUT, PutRequest(), end=False), iter([chunk] * 200))

    run(Behaviour(), ask, Listen("127.0.0.1:0", call_s=0.3), counted)
    assert counted == [Code.BUSY]


def test_a_call_without_a_request_is_refused() -> None:
    def ask(port: int) -> None:
        with connect(f"127.0.0.1:{port}") as channel:
            untyped: Any = channel
            untyped.stream_unary("/" + GET_POOL)(iter([]), timeout=20)

    with pytest.raises(Refused, match="ends before its request") as refused:
        run(Behaviour(), ask)
    assert refused.value.code is Code.BAD_WIRE


# The end.


def test_a_stop_signal_ends_the_server_whoever_hangs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "DRAIN_S", 0.3)
    hanging = ExitStack()

    def ask(port: int) -> None:
        connections = [hanging.enter_context(rude(port, window=window)) for window in (None, 0)]
        for client in connections:
            client.call(FETCH, FetchRequest())
            client.call(PUT)
            client.send(client.call(PUT, PutRequest(), end=False), message(b"", size=1000))
            client.call(WATCH, health_pb2.HealthCheckRequest(), end=False)
        assert get_pool(port) == b"envelope"
        os.kill(os.getpid(), signal.SIGTERM)

    async def main() -> float:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(LOOPBACK, Behaviour().register, on_ready=ready.set_result))
        try:
            await asyncio.to_thread(ask, await ready)
            start = time.monotonic()
            await asyncio.wait_for(serving, 20)
            return time.monotonic() - start
        finally:  # gRPC takes the process with it when its loop goes first
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with hanging:
            assert asyncio.run(main()) < 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_connection_that_took_the_number_of_the_one_to_hang_up_on_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the look at the table of connections and the shutdown, a number may go to another connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(2)]
        ours, other = (stack.enter_context(listener.accept()[0]) for _ in clients)
        peers = ["ipv4:{}:{}".format(*client.getsockname()) for client in clients]
        table = psutil.Process().net_connections("tcp")
        moved = [each._replace(fd=other.fileno()) if each.fd == ours.fileno() else each for each in table]
        with monkeypatch.context() as patched:
            patched.setattr(psutil.Process, "net_connections", lambda *_: moved)
            peer._hang_up(peers[0])
        for each in (ours, other):
            each.sendall(b"x")
        assert [client.recv(1) for client in clients] == [b"x", b"x"]
        peer._hang_up(peers[0])
        assert clients[0].recv(1) == b"", "the same one is hung up on where the number is its own"
        other.sendall(b"y")
        assert clients[1].recv(1) == b"y"
