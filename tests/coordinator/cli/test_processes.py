"""Real processes: what survives kill -9, what an upload costs, and who may share a workspace."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import grpc
import pytest

from coordinator.faults import POINTS
from coordinator.registry.registry import Registry
from coordinator.serving.intake import Intake, IntakeLimits
from coordinator.storage.blobs import Store
from coordinator.storage.spool import Spool
from coordinator.workspace.create import BaseFacts, found
from coordinator.workspace.fsck import check_store
from coordinator.workspace.paths import CoordinatorWorkspace
from protocol import adapter_config
from protocol.adapters import LoraModule, Shape
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, GATES, Bundle, pack
from protocol.documents import Pool, read_pool
from protocol.signing import Identity
from protocol.spec import BaseModelRef, ExpertSpec
from protocol.tensors import TensorInfo, adapter_tensors, gate_tensors
from protocol.v1 import intake_pb2
from protocol.wire.chunks import CHUNK_BYTES
from tests import factories
from tests.coordinator.contributor import NOW, Contributor, put_requests

BASE = BaseModelRef(name="base", config="1" * 64, weights="2" * 64, tokenizer="3" * 64)
BEFORE_THE_ROW = set(POINTS[: POINTS.index("before-commit") + 1])


def make_workspace(folder: Path, modules: dict[str, Shape], **policy: str) -> tuple[CoordinatorWorkspace, Pool]:
    facts = BaseFacts("nowhere", BASE, "encoder-decoder", modules)
    workspace = CoordinatorWorkspace(folder)
    pool = found(workspace, lambda: facts, name="p", choices={"policy": policy}, settings={}, now=datetime.now(UTC))
    return workspace, pool


@contextmanager
def serving(workspace: CoordinatorWorkspace, fault: str = "") -> Iterator[tuple[subprocess.Popen[str], grpc.Channel]]:
    with serving_at(workspace, fault) as (process, address), grpc.insecure_channel(address) as channel:
        yield process, channel


@contextmanager
def serving_at(workspace: CoordinatorWorkspace, fault: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "coordinator.cli.main", "serve", "-w", str(workspace.folder)]
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0", "--json", "--json-log"],
        env=os.environ | {"GREYLAG_FAULT_POINT": fault},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        document = json.loads(process.stdout.readline())
        assert document["schema"] == 1
        yield process, document["address"]
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.stdout.close()


@pytest.mark.parametrize("point", POINTS)
def test_kill_9_loses_nothing(tmp_path: Path, identity: Identity, point: str) -> None:
    workspace, pool = make_workspace(tmp_path / "w", {"m": Shape(d_in=8, d_out=8)})
    bundle = factories.make_bundle(tmp_path / "b", pool, identity)
    with serving(workspace, point) as (process, channel):
        ada = Contributor(channel, identity)
        ada.enrol(pool, "ada")
        with pytest.raises(grpc.RpcError):
            ada.submit(bundle)
        assert process.wait(30) == -signal.SIGKILL
    registry = Registry.open(f"sqlite:///{workspace.folder / 'registry.db'}")
    store = Store(str(workspace.folder / "store"))
    row = registry.bundles.find(bundle.digest)
    assert (row is None) == (point in BEFORE_THE_ROW)
    assert all(store.verify(sha256) for sha256 in registry.bundles.files()), "no row without its bytes"
    assert set(store.digests()) <= {file.sha256 for file in bundle.manifest.files.values()}
    assert all(store.verify(sha256) for sha256 in store.digests()), "at most whole orphans"
    receipt = resubmit(workspace, registry, store, bundle)
    assert receipt == resubmit(workspace, registry, store, bundle)
    assert row is None or row.receipt == receipt
    assert [kept.sequence for kept in registry.bundles.all()] == [1]
    assert list(workspace.spool.iterdir()) == []
    findings = check_store(registry, store, now=datetime.now(UTC))
    registry.close()
    assert findings.healthy
    assert findings.orphans == ()
    assert not list(workspace.folder.rglob(".incoming-*"))


def resubmit(workspace: CoordinatorWorkspace, registry: Registry, store: Store, bundle: Bundle) -> bytes:
    """Start again from what the killed process left, and do as a client does."""
    identity, pool = Identity.load(workspace.key), read_pool(workspace.pool.read_bytes())
    spool = Spool(workspace.spool, quota_bytes=1 << 30, floor_bytes=0)
    intake = Intake(
        pool, identity, registry, store=store, spool=spool, clock=lambda: datetime.now(UTC),
        limits=IntakeLimits(first_bundles=99),
    )  # fmt: skip
    intake.sweep()
    store.sweep_leftovers()
    begun = intake.begin(bundle.manifest.envelope)
    for file in begun.missing:
        writer = spool.append(begun.digest, file.name, bundle.manifest.files[file.name].size)
        writer.write((bundle.folder / file.name).read_bytes()[file.offset :])
        writer.close()
    return begun.receipt or intake.commit(begun.digest, begun.token)


def test_kill_9_in_the_middle_of_an_upload(tmp_path: Path, identity: Identity) -> None:
    workspace, pool = make_workspace(tmp_path / "w", {"m": Shape(d_in=1 << 17, d_out=1 << 17)})
    bundle = factories.make_bundle(tmp_path / "b", pool, identity)
    spooled = workspace.spool / bundle.digest / ADAPTER_WEIGHTS
    with serving(workspace) as (process, channel):
        ada = Contributor(channel, identity)
        ada.enrol(pool, "ada")
        begun = ada.begin(bundle)

        def killed_after_two_chunks() -> Iterator[intake_pb2.PutRequest]:
            requests = put_requests(bundle.folder / ADAPTER_WEIGHTS, begun, ADAPTER_WEIGHTS, 0)
            yield from islice(requests, 3)
            deadline = time.monotonic() + 20
            while spooled.stat().st_size < 2 * CHUNK_BYTES and time.monotonic() < deadline:
                time.sleep(0.01)
            process.kill()

        with pytest.raises(grpc.RpcError):
            ada.intake.Put(killed_after_two_chunks(), timeout=30)
        process.wait(30)
    with serving(workspace) as (_, channel):
        ada = Contributor(channel, identity)
        again = ada.begin(bundle)
        assert {entry.name: entry.offset for entry in again.missing}[ADAPTER_WEIGHTS] == 2 * CHUNK_BYTES
        assert again.token == begun.token
        ada.put(bundle, again)
        assert ada.commit(again)


def test_fsck_finds_and_sweeps(tmp_path: Path, identity: Identity) -> None:
    workspace, pool = make_workspace(tmp_path / "w", {"m": Shape(d_in=8, d_out=8)})
    bundle = factories.make_bundle(tmp_path / "b", pool, identity)
    with serving(workspace) as (_, channel):
        ada = Contributor(channel, identity)
        ada.enrol(pool, "ada")
        ada.submit(bundle)
        assert run(workspace, "fsck").returncode == 75, "not beside serve"
    root = workspace.folder / "store"
    files = bundle.manifest.files
    (root / files[GATES].sha256[:2] / files[GATES].sha256).unlink()
    (root / files[CARD].sha256[:2] / files[CARD].sha256).write_bytes(b"rot")
    (root / "00").mkdir(exist_ok=True)
    (root / "00" / ("0" * 64)).write_bytes(b"orphan")
    done = run(workspace, "fsck", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 65
    assert done.stderr.splitlines()[-2].startswith("error: ")
    assert document["healthy"] is False
    assert document["missing"] == [files[GATES].sha256]
    assert document["damaged"] == [files[CARD].sha256]
    assert document["orphans"] == document["young"] == ["0" * 64]
    assert document["dropped"] == []


def run(workspace: CoordinatorWorkspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordinator.cli.main", *arguments, "-w", str(workspace.folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_500_megabytes_cost_little_memory(tmp_path: Path, identity: Identity) -> None:
    workspace, pool = make_workspace(tmp_path / "w", {f"m{n}": Shape(d_in=8192, d_out=8192) for n in range(125)})
    bundle = sparse_bundle(tmp_path / "b", pool, identity)
    assert bundle.manifest.files[ADAPTER_WEIGHTS].size > 500_000_000
    with serving(workspace) as (process, channel):
        ada = Contributor(channel, identity)
        ada.enrol(pool, "ada")
        begun = ada.begin(bundle)
        before = memory(process.pid)
        ada.put(bundle, begun)
        ada.commit(begun)
        assert memory(process.pid) - before < 100 << 20


def memory(pid: int) -> int:
    """Largest resident memory that a process ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) << 10


def sparse_bundle(folder: Path, pool: Pool, identity: Identity) -> Bundle:
    """A large bundle of zeros, which costs no disk until it is uploaded."""
    spec = ExpertSpec(
        name="large", pool=pool.digest, base=BASE, contributor=identity.public.hex, dtype="float32", license="mit",
        modules={path: LoraModule(d_in=8192, d_out=8192, rank=62, alpha=1.0) for path in pool.spec.modules},
        created=NOW, tool="tests",
    )  # fmt: skip
    folder.mkdir()
    for name, tensors in ((ADAPTER_WEIGHTS, adapter_tensors(spec)), (GATES, gate_tensors(spec))):
        write_sparse(folder / name, tensors)
    (folder / ADAPTER_CONFIG).write_bytes(adapter_config.render(spec, pool.spec))
    (folder / CARD).write_text("# large\n")
    return pack(folder, spec, identity)


def write_sparse(path: Path, tensors: dict[str, TensorInfo]) -> None:
    header, end = {}, 0
    for name, info in tensors.items():
        entry = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [end, end + info.nbytes]}
        header[name], end = entry, end + info.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
