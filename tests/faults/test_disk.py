"""A disk that is really full, and then read-only, under a real `serve`: a file system of a few megabytes in memory."""

import json
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.submission import upload
from deploy.demo.processes import program
from protocol.adapters import Shape
from protocol.bundle import Bundle
from protocol.documents import Receipt
from protocol.errors import Code, GreylagError
from protocol.programs import end_child
from protocol.signing import Identity
from protocol.v1.catalog_pb2 import GetPoolRequest
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.wire.grpc_client import connect
from tests import factories
from tests.coordinator.cli.test_processes import make_workspace
from tests.coordinator.contributor import enrolment

pytestmark = pytest.mark.slow  # it starts programs

SIZE, ROOM = 8 << 20, 300 << 10
"""Bytes of the disk, and how many are left when it is nearly full."""


class Disk:
    """A small file system that is seen by whoever is run in it."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder = folder
        script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && cp -a "$3"/. "$2" && echo ready && exec sleep 300'
        words = ["unshare", "-m", "sh", "-c", script, "sh", str(SIZE), str(folder), str(source)]
        self._keeper = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._keeper.stdout is not None
        self.is_there = self._keeper.stdout.readline() == "ready\n"

    @property
    def inside(self) -> Path:
        """Its folder as seen from outside."""
        return Path(f"/proc/{self._keeper.pid}/root{self.folder}")

    def enter(self, *words: str) -> list[str]:
        """The command line of something that is run in it."""
        return ["nsenter", "-t", str(self._keeper.pid), "-m", *words]

    def fill(self, left: int) -> None:
        """Take all room but so much."""
        free = os.statvfs(self.inside)
        with (self.inside / "ballast").open("ab") as file:
            file.write(bytes(max(0, free.f_bavail * free.f_frsize - left)))

    def remount(self, how: str) -> None:
        subprocess.run(self.enter("mount", "-o", f"remount,{how}", str(self.folder)), check=True)

    def close(self) -> None:
        end_child(self._keeper, at_once=True)


class Corner:
    """A pool without a model, and a contributor with two bundles."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.pool = make_workspace(folder / "w", {"m": Shape(d_in=1 << 13, d_out=1 << 13)})
        self.ada = Identity.generate()
        self.bundles = [
            factories.make_bundle(folder / f"b{n}", self.pool, self.ada, name=f"e{n}", rank=16, seed=n) for n in (1, 2)
        ]

    def send(self, address: str, bundle: Bundle, give_up_after_s: float = 0.5) -> Receipt:
        coordinator = upload.Coordinator(address, give_up_after_s=give_up_after_s)
        introduced = enrolment(self.pool.digest, self.ada, "ada")
        receipt, _ = upload.submit(bundle, introduced, lambda _: self.pool, coordinator, lambda _: None)
        return receipt

    def refused(self, address: str, bundle: Bundle) -> Code:
        with pytest.raises(GreylagError) as error:
            self.send(address, bundle)
        return error.value.code


@pytest.fixture
def corner(tmp_path: Path) -> Corner:
    return Corner(tmp_path)


@pytest.fixture
def disk(tmp_path: Path, corner: Corner) -> Iterator[Disk]:
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk", corner.workspace.folder)
    try:
        if not disk.is_there:
            pytest.skip("only root may mount a file system")
        yield disk
    finally:
        disk.close()


@contextmanager
def serving(words: list[str]) -> Iterator[str]:
    settings = {"GREYLAG_COORDINATOR_FREE_DISK_FLOOR_BYTES": "0", "GREYLAG_COORDINATOR_FIRST_BUNDLES": "9"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | settings)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        end_child(process)
        assert process.returncode == 0


def serve(folder: Path) -> list[str]:
    return program("coordinator", "serve", "-w", folder, "--listen", "127.0.0.1:0", "--json")


def pool_of(address: str) -> bytes:
    with connect(address) as channel:
        return CatalogStub(channel).GetPool(GetPoolRequest(), timeout=20).envelope


def test_a_full_disk_and_then_a_read_only_one(disk: Disk, corner: Corner) -> None:
    first, second = corner.bundles
    with serving(disk.enter(*serve(disk.folder))) as address:
        disk.fill(ROOM)
        assert corner.refused(address, first) is Code.STORAGE_FULL
        disk.fill(0)
        assert corner.refused(address, first) is Code.STORAGE_FULL
        assert pool_of(address) == corner.pool.envelope, "it goes on answering"
        (disk.inside / "ballast").unlink()
        assert corner.send(address, first).sequence == 1
        assert corner.send(address, second).sequence == 2
    subprocess.run(disk.enter(*program("coordinator", "fsck", "-w", disk.folder)), check=True)
    disk.remount("ro")
    done = subprocess.run(disk.enter(*serve(disk.folder)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode not in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "Read-only" in done.stderr or "read-only" in done.stderr or "readonly" in done.stderr


def test_a_database_that_is_locked_and_then_gone(corner: Corner) -> None:
    first, second = corner.bundles
    database, away = corner.workspace.folder / "registry.db", corner.workspace.folder / "away"
    with serving(serve(corner.workspace.folder)) as address:
        holder = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        threading.Timer(2, holder.close).start()  # which rolls back
        start = time.monotonic()
        assert corner.send(address, first, 60).sequence == 1
        assert time.monotonic() - start > 1.5, "it waited for the lock"
    away.mkdir()
    for path in database.parent.glob("registry.db*"):
        path.rename(away / path.name)
    done = subprocess.run(serve(corner.workspace.folder), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == Code.WORKSPACE_MISSING.fate.exit
    assert not database.exists(), "no empty one takes its place"
    for path in away.iterdir():
        path.rename(database.parent / path.name)
    with serving(serve(corner.workspace.folder)) as address:
        assert corner.send(address, first).sequence == 1
        assert corner.send(address, second).sequence == 2
