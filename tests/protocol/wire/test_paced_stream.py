"""A file that comes too slowly is given up, over real loopback; one that comes slowly enough is not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from protocol.errors import Code, Refused, Unavailable
from protocol.v1.catalog_pb2 import FetchRequest
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.v1.chunk_pb2 import Chunk
from protocol.wire import grpc_client
from protocol.wire.grpc_client import connect, paced
from tests.protocol.serving import Behaviour, run


@dataclass
class Slow(Behaviour):
    """Sends so many chunks of so many bytes, with a pause before each, then fails if there is an error."""

    size: int = 0
    count: int = 8

    async def Fetch(self, request: Any, context: Any) -> AsyncIterator[Chunk]:  # noqa: N802 - gRPC's name
        for _ in range(self.count):
            await asyncio.sleep(self.wait_s)
            yield Chunk(data=bytes(self.size))
        if self.error:
            raise self.error


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_client, "IDLE_S", 0.75)  # long beside the pauses, however busy the machine is
    monkeypatch.setattr(grpc_client, "LEAST_BYTES", 100)


def fetched(behaviour: Slow) -> int:
    def ask(port: int) -> int:
        address = f"127.0.0.1:{port}"
        with connect(address) as channel:
            return len(list(paced(CatalogStub(channel).Fetch(FetchRequest(), timeout=20), address)))

    return run(behaviour, ask)


def test_what_comes_slowly_enough_comes_whole() -> None:
    assert fetched(Slow(size=100, wait_s=0.05)) == 8


@pytest.mark.parametrize(("size", "wait_s"), [(1, 0.05), (100, 20.0)], ids=["dripped", "silent"])
def test_what_comes_too_slowly_is_given_up(size: int, wait_s: float) -> None:
    with pytest.raises(Unavailable, match=r"stood still for 0\.75 s") as failed:
        fetched(Slow(size=size, wait_s=wait_s, count=100))
    assert failed.value.code is Code.UNREACHABLE


def test_a_refusal_in_the_middle_is_no_slowness() -> None:
    with pytest.raises(Refused, match="Not yours"):
        fetched(Slow(size=100, error=Refused(Code.QUOTA, "Not yours.")))
