"""Kill -9 the coordinator in the worst moments: the client resumes by itself, nothing is lost or doubled."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from deploy.demo.processes import program
from protocol.documents import read_pool
from protocol.signing import Identity
from tests import factories
from tests.system.proxy import proxied
from tests.system.town import Town, coordinate, found, succeed


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factories.make_t5(tmp_path_factory.mktemp("wide"), d_model=1024)


@pytest.fixture
def town(wide_base: Path, tmp_path: Path) -> Town:
    return found(tmp_path, wide_base)


def ready_bundle(place: Path) -> Path:
    """A bundle of some megabytes in a contributor's workspace."""
    pool = read_pool((place / "pool.dsse.json").read_bytes())
    folder = place / "bundles" / "wide"
    factories.make_bundle(folder, pool, Identity.load(place / "contributor.key"), name="wide", rank=32)
    return folder


def submitting(place: Path, bundle: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        program("client", "submit", "-w", place, bundle), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(client: "subprocess.Popen[str]") -> None:
    out, error = client.communicate(timeout=120)
    assert client.returncode == 0, f"{out}\n{error}"


def test_killed_in_the_middle_of_an_upload(town: Town) -> None:
    size = 4 << 20
    with proxied(town.port, hold_after=size // 2) as proxy:
        with town.serving() as server:
            place = town.join("ada", through=proxy.port)
            bundle = ready_bundle(place)
            total = sum(path.stat().st_size for path in bundle.iterdir())
            assert total > size
            client = submitting(place, bundle)
            assert proxy.held.wait(60)
            deadline = time.monotonic() + 30
            spool = town.coordinator / "spool"
            while not (arrived := sum(p.stat().st_size for p in spool.rglob("*") if p.is_file())) > 3 * size // 8:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            server.send_signal(signal.SIGKILL)
            server.wait(10)
        proxy.release()
        with town.serving():
            finished(client)
            assert len(town.experts()) == 1
            # It continued: what had arrived was not sent again; half a file had left, three eighths had been kept.
            assert len(proxy.sent) < total + size // 4
            assert arrived < total
    town.work()
    assert [row["state"] for row in town.experts()] == ["released"]
    coordinate("fsck", "-w", town.coordinator)


@pytest.mark.parametrize("point", ["blobs-stored", "before-commit", "after-commit"])
def test_killed_in_the_middle_of_a_commit(town: Town, point: str) -> None:
    with town.serving(GREYLAG_FAULT_POINT=point) as server:
        place = town.join("ada")
        client = submitting(place, ready_bundle(place))
        assert server.wait(60) == -signal.SIGKILL
    with town.serving():
        finished(client)
        said = json.loads(succeed("client", "verify", "-w", place, "--json"))
        assert [row["fault"] for row in said["bundles"]] == [None], "what is acknowledged is in the log"
    town.work()
    assert [row["state"] for row in town.experts()] == ["released"]
    shown = json.loads(coordinate("log", "show", "-w", town.coordinator, "--json"))
    steps = [entry["step"] for entry in shown["entries"]]
    assert steps == ["founded", "active", "received", "verified", "quarantined", "accepted", "1", "released"]
    coordinate("fsck", "-w", town.coordinator)


def test_killed_before_what_is_kept_is_signed(town: Town) -> None:
    command = program("coordinator", "log", "checkpoint", "-w", town.coordinator)
    killed = subprocess.run(command, env=os.environ | {"GREYLAG_FAULT_POINT": "entries-kept"}, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (town.coordinator / "checkpoint.txt").exists()
    assert coordinate("log", "checkpoint", "-w", town.coordinator).splitlines()[1] == "1"
    coordinate("fsck", "-w", town.coordinator)
