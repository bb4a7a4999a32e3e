"""A bundle of 500 MB passes through both sides without either holding it in memory."""

import json
import os
import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from coordinator.admission import limited_process
from coordinator.workspace.create import BaseFacts, found
from coordinator.workspace.paths import CoordinatorWorkspace
from deploy.demo.processes import free_port, program
from protocol import adapter_config
from protocol.adapters import LoraModule, Module, Shape
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, ENVELOPE, GATES, open_bundle, pack
from protocol.documents import Pool, read_pool
from protocol.signing import Identity
from protocol.spec import ExpertSpec
from protocol.tensors import TensorInfo, adapter_tensors, gate_tensors
from router.base.fingerprint import fingerprint
from tests import factories
from tests.system.town import Town

WIDE, NARROW, RANK = 1 << 20, 64, 61
PATHS = ("wide.one", "wide.two")
ALLOWED_KIB = 100 << 10


def write_safetensors(path: Path, tensors: dict[str, TensorInfo]) -> None:
    """Write normal numbers block by block: this test must not hold the file either."""
    header, offset = {}, 0
    for name, info in tensors.items():
        header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [offset, offset + info.nbytes]}
        offset += info.nbytes
    text = json.dumps(header).encode()
    block = np.random.default_rng(0).standard_normal(1 << 18, dtype=np.float32).tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, offset, len(block)):
            file.write(block[: min(len(block), offset - start)])


def write_bundle(folder: Path, pool: Pool, identity: Identity, name: str, paths: tuple[str, ...], rank: int) -> None:
    shapes = {path: pool.spec.modules[path] for path in paths}
    modules: dict[str, Module] = {
        p: LoraModule(d_in=s.d_in, d_out=s.d_out, rank=rank, alpha=1.0) for p, s in shapes.items()
    }
    spec = ExpertSpec(
        name=name, pool=pool.digest, base=pool.spec.base, contributor=identity.public.hex, modules=modules,
        dtype="float32", license="apache-2.0", created=factories.NOW, tool="tests",
    )  # fmt: skip
    folder.mkdir(parents=True)
    write_safetensors(folder / ADAPTER_WEIGHTS, adapter_tensors(spec))
    write_safetensors(folder / GATES, gate_tensors(spec))
    (folder / ADAPTER_CONFIG).write_bytes(adapter_config.render(spec, pool.spec))
    (folder / CARD).write_text(f"# {name}\n")
    pack(folder, spec, identity)


def submit(place: Path, bundle: Path) -> int:
    """Submit, and return the client's peak memory in KiB."""
    process = subprocess.Popen(
        program("client", "submit", "-w", place, bundle), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert process.stderr is not None
    with process.stderr as said:
        assert os.waitstatus_to_exitcode(status) == 0, said.read()
    process.returncode = 0
    return usage.ru_maxrss


def peak(pid: int) -> int:
    """Peak memory of a running process in KiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


@pytest.fixture
def town(tmp_path: Path, t5_base: Path) -> Town:
    """A pool over modules so wide that two of them make 500 MB; nobody here runs the model."""
    shapes = dict.fromkeys(PATHS, Shape(d_in=WIDE, d_out=NARROW)) | {"small": Shape(d_in=8, d_out=8)}
    facts = BaseFacts(str(t5_base), fingerprint(str(t5_base)), "encoder-decoder", shapes)
    found(
        CoordinatorWorkspace(tmp_path / "coordinator"), lambda: facts, name="wide", choices={},
        settings={"first_bundles": 2}, now=datetime.now(UTC),
    )  # fmt: skip
    return Town(tmp_path, t5_base, free_port())


def test_500_mb_cost_neither_side_100_mb(town: Town) -> None:
    with town.serving() as server:
        place = town.join("ada")
        pool = read_pool((place / "pool.dsse.json").read_bytes())
        identity = Identity.load(place / "contributor.key")
        write_bundle(place / "bundles" / "little", pool, identity, "little", ("small",), 4)
        write_bundle(place / "bundles" / "large", pool, identity, "large", PATHS, RANK)
        assert (place / "bundles" / "large" / ADAPTER_WEIGHTS).stat().st_size > 500e6
        client_before, server_before = submit(place, place / "bundles" / "little"), peak(server.pid)
        client_after, server_after = submit(place, place / "bundles" / "large"), peak(server.pid)
        assert client_after - client_before < ALLOWED_KIB
        assert server_after - server_before < ALLOWED_KIB
    # The content check in its limited process manages the large one, too.
    limited_process.check(open_bundle(place / "bundles" / "large").folder, town.coordinator / "pool.dsse.json")
    assert (place / "bundles" / "large" / ENVELOPE).exists()
