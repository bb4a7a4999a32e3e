"""Runs the content checks in a process of their own, with limits that its input cannot lift.

`check` starts it; `python -m coordinator.admission.limited_process FOLDER POOL LIMITS` is the process: it
limits itself, then reads the bundle, and answers with one line of JSON.
"""

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

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


def check(folder: Path, pool: Path, limits: ProcessLimits = ProcessLimits()) -> None:
    """Check the content of a bundle whose digests are right in a subprocess; refuses as `check_content`.

    Raises:
        CheckFailedError: The process was killed, crashed or did not answer.
    """
    command = [sys.executable, "-P", "-B", "-m", __name__, str(folder.resolve()), str(pool.resolve())]
    try:
        done = subprocess.run(  # noqa: S603 - our own module, paths of our own making
            [*command, json.dumps(asdict(limits))],
            # Nothing of the server's environment: it may hold passwords, and could change what runs.
            env={"PYTHONPATH": str(_ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
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
        if answer is None:
            return
        refusal = Refused(Code[answer["code"]], answer["message"], answer["hint"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailedError("gave no answer") from error
    raise refusal


def main(folder: str, pool: str, given: str) -> None:
    """Be the process."""
    limits = ProcessLimits(**json.loads(given))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from coordinator.admission.check import check_content  # noqa: PLC0415 - whatever is imported is limited too
    from protocol.documents import read_pool  # noqa: PLC0415

    read_pool(Path(pool).read_bytes())  # what is wrong with it is no bundle's fault
    answer = None
    try:
        check_content(Path(folder), Path(pool))
    except GreylagError as error:
        answer = {"code": error.code.name, "message": error.message, "hint": error.hint}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
