"""Five ways to be a nuisance to a coordinator; each is one peer with an address of its own, until it is killed."""

import itertools
import os
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest

from coordinator.conformance.draft import make_draft
from protocol.documents import Pool, read_pool
from protocol.errors import GreylagError
from protocol.files import strict_json
from protocol.files.atomic import write_whole
from protocol.signing import Identity
from protocol.v1.catalog_pb2 import GetPoolRequest
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.v1.chunk_pb2 import Chunk
from protocol.v1.intake_pb2 import BeginRequest, CommitRequest, EnrolRequest, PutRequest, PutStart, StatusRequest
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.v1.log_pb2 import GetCheckpointRequest
from protocol.wire.grpc_client import connect
from tests.coordinator.contributor import enrolment
from tests.protocol.raw_http2 import RawClient, frame, message, rude
from tests.system.proxy import proxied

_AT_ONCE, _SHARE = 8, 16
"""Calls of a flood on their way at once, and how many slots of a server one connection gets."""
_WINDOW_UPDATE, _MOST_WINDOW = 8, (1 << 31) - 1 - (1 << 16)
_ENVELOPE_BYTES, _CHUNK_BYTES, _DRIP_S, _TIRED_S = 12 << 10, 64 << 10, 1.0, 35.0


class Target(NamedTuple):
    """Who is pestered, and from where."""

    port: int
    ca: Path
    source: str
    did: "Counter[str]"

    def rude(self, window: int | None = None) -> AbstractContextManager[RawClient]:
        return rude(self.port, window, self.source, self.ca)


def flood(target: Target) -> None:
    """Ask small things as fast as they are answered, with junk in the place of envelopes among them."""
    junk = random.Random(target.source).randbytes(_ENVELOPE_BYTES)
    asked: list[tuple[str, Message]] = [
        ("Catalog/GetPool", GetPoolRequest()),
        ("Log/GetCheckpoint", GetCheckpointRequest()),
        ("Intake/Status", StatusRequest(digest="f" * 64)),
        ("Intake/Enrol", EnrolRequest(envelope=junk)),
        ("Intake/Begin", BeginRequest(envelope=junk)),
        ("Intake/Commit", CommitRequest(digest="f" * 64, token=b"no")),
    ]
    with target.rude() as client:
        client.socket.sendall(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _MOST_WINDOW)))  # it takes every reply
        over = 0
        for number, (method, request) in enumerate(itertools.cycle(asked), 1):
            client.call(f"greylag.v1.{method}", request)
            if number % _AT_ONCE == 0:
                before, over = over, client.how_many_ended(number - _AT_ONCE + 1, 10)
                target.did["calls of a flood"] += over - before


def hold_slots(target: Target) -> None:
    """Have calls answered that are never read, and health watched, as many as one connection gets."""
    with target.rude(0) as client:
        for _ in range(_SHARE):
            client.call("greylag.v1.Catalog/GetPool", GetPoolRequest())
            client.call("grpc.health.v1.Health/Watch", HealthCheckRequest())
        target.did["slots held"] += _SHARE
        client.how_many_ended(2 * _SHARE, _TIRED_S)


def drip(target: Target) -> None:
    """Send requests by the byte, a byte a second in each of many calls."""
    whole = message(EnrolRequest(envelope=b"{" * 200).SerializeToString())
    with target.rude() as client:
        streams = [client.call("greylag.v1.Intake/Enrol") for _ in range(_SHARE)]
        for at in range(len(whole)):
            for stream in streams:
                client.send(stream, whole[at : at + 1])
                target.did["bytes dripped"] += 1
            if client.ended(*streams, within_s=_DRIP_S):
                return


def enrol(target: Target) -> None:
    """Present new keys, one after the other."""
    with proxied(target.port, source=target.source) as proxy, connect(f"127.0.0.1:{proxy.port}", target.ca) as channel:
        pool, intake = _pool(channel), IntakeStub(channel)
        while True:
            identity = Identity.generate()
            envelope = enrolment(pool.digest, identity, f"x-{identity.public.hex[:16]}")
            target.did["keys presented"] += 1
            with suppress(grpc.RpcError):
                intake.Enrol(EnrolRequest(envelope=envelope), timeout=10)
                target.did["keys taken"] += 1


def upload_badly(target: Target) -> None:
    """Bring bundles whose bytes are not those that were signed, and leave others half sent."""
    with proxied(target.port, source=target.source) as proxy, connect(f"127.0.0.1:{proxy.port}", target.ca) as channel:
        pool, intake, identity = _pool(channel), IntakeStub(channel), Identity.generate()
        name, draw = f"bad-{identity.public.hex[:16]}", np.random.default_rng()
        intake.Enrol(EnrolRequest(envelope=enrolment(pool.digest, identity, name)), timeout=10)
        for number in itertools.count():
            draft = make_draft(pool, identity, f"bad-{number % 7}", draw)
            with suppress(grpc.RpcError):
                begun = intake.Begin(BeginRequest(envelope=draft.envelope), timeout=10)
                for missing in begun.missing:
                    content = bytes(len(draft.contents[missing.name]))
                    intake.Put(_requests(begun.digest, begun.token, missing.name, content), timeout=10)
                target.did["bad bundles sent"] += 1
                intake.Commit(CommitRequest(digest=begun.digest, token=begun.token), timeout=10)


def _requests(digest: str, token: bytes, name: str, content: bytes) -> Iterator[PutRequest]:
    from zlib import crc32  # noqa: PLC0415

    yield PutRequest(start=PutStart(digest=digest, token=token, name=name))
    for at in range(0, len(content), _CHUNK_BYTES):
        data = content[at : at + _CHUNK_BYTES]
        yield PutRequest(chunk=Chunk(offset=at, data=data, crc32=crc32(data)))


def _pool(channel: grpc.Channel) -> Pool:
    return read_pool(CatalogStub(channel).GetPool(GetPoolRequest(), timeout=10).envelope)


KINDS: tuple[Callable[[Target], None], ...] = (flood, hold_slots, drip, enrol, upload_badly)


def pester(kind: int, sources: list[str], port: int, ca: Path, told: Path) -> None:
    """Be so many peers of a kind, each in a thread, until killed; what they did is written down every second."""
    os.nice(19)  # they have machines of their own: what it costs to make nonsense is not to slow the others
    did: Counter[str] = Counter()

    def be(source: str) -> None:
        while True:
            try:
                KINDS[kind](Target(port, ca, source, did))
            except (OSError, GreylagError, grpc.RpcError):
                did[f"{KINDS[kind].__name__}: turned away"] += 1
                time.sleep(0.1)  # as whoever has to connect again

    for source in sources:
        threading.Thread(target=be, args=(source,), daemon=True).start()
    while True:
        time.sleep(1)
        write_whole(told, strict_json.dumps(dict(did)))
