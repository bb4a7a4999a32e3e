"""Runs the content checks in a process of their own, with limits that its input cannot lift.

`check`, `sketch` and `compare` start it; `python -m coordinator.admission.limited_process` is the process: it reads an
order, limits itself, then reads the bundle, and answers with one line of JSON.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protocol.errors import Code, GreylagError, Refused

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ProcessLimits:
    """What one check may use."""

    memory_bytes: int = 1 << 30
    """Address space, in bytes; the check itself reads in blocks and needs no more for larger bundles."""
    cpu_s: int = 120
    wall_s: float = 300.0


class CheckFailedError(Exception):
    """A check that came to no verdict: too slow, killed, or broken. It may be the machine's fault: try again."""


def check(folder: Path, pool: Path, limits: ProcessLimits = ProcessLimits(), *, secret: bytes = b"") -> bytes:
    """Check the content of a bundle whose digests are right in a subprocess; refuses as `check_content`.

    Args:
        folder: The bundle.
        pool: The pool's signed document.
        limits: What the process may use.
        secret: For the sketch.

    Returns:
        The sketch of the expert, float16 numbers as `coordinator.admission.sketch`.

    Raises:
        CheckFailedError: The process was killed, crashed or did not answer.
    """
    return bytes.fromhex(_run("check", [folder], pool, limits, secret))


def sketch(folder: Path, pool: Path, limits: ProcessLimits = ProcessLimits(), *, secret: bytes = b"") -> bytes:
    """As `check`, of what was let in by an older version's check: it is judged no more."""
    return bytes.fromhex(_run("sketch", [folder], pool, limits, secret))


def compare(folder: Path, other: Path, pool: Path, limits: ProcessLimits = ProcessLimits()) -> float:
    """Say how much of the smaller of two checked bundles is the other's (`coordinator.admission.sketch.nearness`).

    Raises:
        CheckFailedError: As `check`.
    """
    return float(_run("compare", [folder, other], pool, limits))


def _run(task: str, folders: Sequence[Path], pool: Path, limits: ProcessLimits, secret: bytes = b"") -> str:
    """Have a process do a task within limits; it reads its order, since arguments are for everybody to list."""
    paths = [str(folder.resolve()) for folder in folders]
    order = {"task": task, "folders": paths, "pool": str(pool.resolve()), "secret": secret.hex()}
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-P", "-B", "-m", __name__],
            # Nothing of the server's environment: it may hold passwords, and could change what runs.
            env={"PYTHONPATH": str(_ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
            input=json.dumps(order | {"limits": asdict(limits)}).encode(),
            capture_output=True,
            timeout=limits.wall_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckFailedError(f"took longer than {limits.wall_s:g} s") from error
    if done.returncode != 0:
        raise CheckFailedError(f"ended with status {done.returncode}")
    try:
        answer = json.loads(done.stdout)
        if "answer" in answer:
            return str(answer["answer"])
        refusal = Refused(Code[answer["code"]], answer["message"], answer["hint"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailedError("gave no answer") from error
    raise refusal


def carry_out(order: Mapping[str, Any]) -> dict[str, Any]:
    """Do what an order says, within whatever limits this process has; returns an answer or a refusal."""
    from coordinator.admission import check, sketch  # noqa: PLC0415 - whatever is imported is limited too
    from protocol.bundle import ENVELOPE, read_manifest  # noqa: PLC0415
    from protocol.documents import read_pool  # noqa: PLC0415

    pool = read_pool(Path(order["pool"]).read_bytes())  # what is wrong with it is no bundle's fault
    folders = [Path(folder) for folder in order["folders"]]
    try:
        if order["task"] == "check":
            check.check_content(folders[0], Path(order["pool"]))
        experts = [(folder, read_manifest((folder / ENVELOPE).read_bytes()).spec) for folder in folders]
        if order["task"] == "compare":
            return {"answer": sketch.compare(*experts)}
        secret, modules = bytes.fromhex(order["secret"]), sorted(pool.spec.modules)
        return {"answer": sketch.sketch(*experts[0], modules, secret).tobytes().hex()}
    except GreylagError as error:
        return {"code": error.code.name, "message": error.message, "hint": error.hint}


def main() -> None:  # pragma: no cover - it may write no file, and so no record of what ran; it has no branches
    """Be the process."""
    order = json.load(sys.stdin)
    limits = ProcessLimits(**order["limits"])
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write(json.dumps(carry_out(order)) + "\n")


if __name__ == "__main__":
    main()
