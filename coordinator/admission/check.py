"""Is the inside of a bundle what its envelope says? Runs in a limited process, never in a server."""

from pathlib import Path

from coordinator.admission import numerics
from coordinator.admission.peft_config import check_config
from protocol import tensors
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ENVELOPE, GATES, SPEC, check_spec, read_manifest
from protocol.documents import read_pool
from protocol.errors import Code
from protocol.files import strict_json


def check_content(folder: Path, pool: Path) -> None:
    """Check structure, then numbers, of a bundle whose digests are right.

    Raises:
        Refused: `SPEC_INVALID`, `CONFIG_MISMATCH`, `NOT_FINITE`, `CONSTANT_GATE`, `NO_EFFECT`, or as `tensors.check`.
    """
    spec = read_manifest((folder / ENVELOPE).read_bytes()).spec
    linears = set(read_pool(pool.read_bytes()).spec.modules)
    check_spec(folder / SPEC, spec)
    config = strict_json.loads((folder / ADAPTER_CONFIG).read_bytes(), what=ADAPTER_CONFIG, code=Code.CONFIG_MISMATCH)
    check_config(config, spec, linears)
    adapter = tensors.check(folder / ADAPTER_WEIGHTS, tensors.adapter_tensors(spec))
    gates = tensors.check(folder / GATES, tensors.gate_tensors(spec))
    numerics.check_adapter(folder / ADAPTER_WEIGHTS, adapter)
    numerics.check_gates(folder / GATES, gates)
