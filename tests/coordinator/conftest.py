"""Fixtures of the coordinator's tests: a pool that needs no model, databases, a served workspace."""

import asyncio
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import psycopg.sql
import pytest

from coordinator.registry.registry import Registry
from coordinator.serving.catalog_service import CatalogService
from coordinator.serving.intake import Intake, IntakeLimits
from coordinator.serving.intake_service import IntakeService
from coordinator.serving.log_service import LogService
from coordinator.storage.blobs import Store
from coordinator.storage.spool import Spool
from coordinator.workspace.checkpoints import Checkpoints
from coordinator.workspace.keyring import Keyring
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.role_keys import found_roles
from coordinator.workspace.roles import Roles
from protocol.adapters import Shape
from protocol.bundle import ADAPTER_CONFIG, Bundle, pack
from protocol.documents import Pool, sign_pool
from protocol.errors import Code
from protocol.files import strict_json
from protocol.log.note import NoteKey
from protocol.signing import Identity
from protocol.spec import BaseModelRef, ExpertSpec, Policy, PoolSpec
from protocol.v1 import catalog_pb2_grpc, intake_pb2_grpc, log_pb2_grpc
from protocol.wire.grpc_server import CallInterceptor, Listen
from protocol.wire.places import Places
from tests import factories
from tests.coordinator.contributor import NOW

POSTGRES_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
MODULES = {"block.0.q": Shape(d_in=16, d_out=16), "block.0.v": Shape(d_in=16, d_out=24)}


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_pool(identity: Identity, **policy: object) -> Pool:
    spec = PoolSpec(
        name="test-pool",
        base=BaseModelRef(name="base", config="1" * 64, weights="2" * 64, tokenizer="3" * 64),
        architecture="encoder-decoder",
        modules=MODULES,
        policy=Policy.model_validate(policy),
        coordinator=identity.public.hex,
        created=NOW,
    )
    return sign_pool(spec, identity)


def resign(bundle: Bundle, identity: Identity, **changes: object) -> Bundle:
    """Change facts of a spec and sign the bundle again."""
    spec = ExpertSpec.model_validate(bundle.spec.model_dump() | changes)
    return pack(bundle.folder, spec, identity)


@pytest.fixture
def coordinator_identity() -> Identity:
    return Identity.generate()


@pytest.fixture
def pool(coordinator_identity: Identity) -> Pool:
    return make_pool(coordinator_identity)


@pytest.fixture
def bundle(tmp_path: Path, pool: Pool, identity: Identity) -> Bundle:
    return factories.make_bundle(tmp_path / "bundle", pool, identity)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of our own on a free loopback port; yields a URL without a database's name."""
    if not POSTGRES_BINARIES:
        pytest.skip("no PostgreSQL server binaries on this machine")
    binaries = POSTGRES_BINARIES[-1]
    user = next((n for n in ("postgres", "nobody") if _exists(n)), None) if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # pytest's own folders are closed to other users
    if user:
        shutil.chown(folder, user)
    as_owner: dict[str, Any] = {"user": user, "cwd": folder, "env": {"LC_ALL": "C"}, "stdout": subprocess.DEVNULL}
    command = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "greylag", "-A", "trust", "-E", "UTF8"]
    subprocess.run([*command, "--no-sync"], check=True, timeout=60, stderr=subprocess.DEVNULL, **as_owner)
    server, url = _start(binaries / "postgres", folder, as_owner)
    try:
        yield url
    finally:
        server.send_signal(signal.SIGQUIT)  # PostgreSQL's immediate shutdown
        server.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _start(program: Path, folder: Path, as_owner: dict[str, Any]) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server; another may have taken the port that was free, so a server that ends is started again."""
    log = folder / "log"
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = ["-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
        with log.open("ab") as stderr:
            server = subprocess.Popen([program, "-D", folder / "data", *options], stderr=stderr, **as_owner)
        url = f"postgresql://greylag@127.0.0.1:{port}"
        if _answers(server, url):
            return server, url
        server.kill()
        server.wait(timeout=60)
    pytest.fail(f"PostgreSQL did not start in three trials:\n{log.read_text()[-2000:]}")


def _answers(server: subprocess.Popen[bytes], url: str) -> bool:
    for _ in range(300):
        if server.poll() is not None:
            return False
        try:
            psycopg.connect(f"{url}/postgres", connect_timeout=5).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return True
    return False


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    server: str = request.getfixturevalue("postgres")
    name = f"t{os.urandom(6).hex()}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    return f"{server}/{name}"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", migrate=True)
    yield registry
    registry.close()


class Served:
    """A coordinator behind a real port, in a thread of this process."""

    def __init__(self, folder: Path, pool: Pool, identity: Identity, clock: Clock) -> None:
        self.folder, self.pool, self.identity, self.clock = folder, pool, identity, clock
        self.refused: list[Code] = []
        self.idle_s, self.streams = 30.0, 24
        self.free_bytes = 1 << 40
        self.registry = Registry.open(f"sqlite:///{folder / 'served.db'}", migrate=True)
        self.store = Store(str(folder / "store"))
        self.spool = Spool(
            folder / "spool", quota_bytes=1 << 30, floor_bytes=1 << 20, free_bytes=lambda _: self.free_bytes
        )
        self.service: IntakeService | None = None
        self.witnesses: list[NoteKey] = []
        place = CoordinatorWorkspace(folder)
        keyring = Keyring(place, held=(identity,))
        self.checkpoints = Checkpoints(place, self.registry, pool, keyring)
        found_roles(place, pool, identity, {}, now=clock())
        self.roles = Roles(place, self.registry, pool, keyring)
        self.intake = Intake(
            pool, identity, self.registry, store=self.store, spool=self.spool, clock=clock,
            limits=IntakeLimits(first_bundles=99, fleet="fleet.example.org:7444"), check_log=self.checkpoints.check,
        )  # fmt: skip

    def busy(self) -> set[tuple[str, str]]:
        return self.service._busy if self.service else set()

    @contextmanager
    def running(self) -> Iterator[str]:
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()
        ready: list[int] = []
        started = threading.Event()

        async def main() -> None:
            listen = Listen("127.0.0.1:0", idle_s=self.idle_s)
            server = grpc.aio.server(interceptors=[CallInterceptor(listen, self.refused.append)])
            service = self.service = IntakeService(self.intake, self.spool, Places(self.streams))
            intake_pb2_grpc.add_IntakeServicer_to_server(service, server)
            catalog = CatalogService(
                self.pool, self.registry, self.store, Places(self.streams),
                lambda role, version: self.roles.show(role, version, now=self.clock()),
            )  # fmt: skip
            catalog_pb2_grpc.add_CatalogServicer_to_server(catalog, server)
            log = LogService(self.pool, self.registry, self.checkpoints, self.witnesses)
            log_pb2_grpc.add_LogServicer_to_server(log, server)
            ready.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            started.set()
            await stop.wait()
            await server.stop(1)

        thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
        thread.start()
        try:
            assert started.wait(10)
            yield f"127.0.0.1:{ready[0]}"
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(20)
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            self.registry.close()


@pytest.fixture
def served(tmp_path: Path, pool: Pool, coordinator_identity: Identity, clock: Clock) -> Served:
    folder = tmp_path / "served"
    folder.mkdir()
    return Served(folder, pool, coordinator_identity, clock)


def set_config(bundle: Bundle, identity: Identity, **changes: object) -> Bundle:
    """Change adapter_config.json and sign the bundle again."""
    path = bundle.folder / ADAPTER_CONFIG
    path.write_bytes(strict_json.dumps(json.loads(path.read_text()) | changes))
    return pack(bundle.folder, bundle.spec, identity)
