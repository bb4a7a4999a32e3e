"""Real processes over loopback, each the program that a person would type; none outlives the demo."""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from protocol.errors import GreylagError
from protocol.programs import end_child

Found = TypeVar("Found")
_running: set[subprocess.Popen[str]] = set()
_ending = threading.Event()
_starting = threading.Lock()


def program(name: str, *arguments: object) -> list[str]:
    """Return the command line of one of the three programs."""
    return [str(Path(sys.executable).with_name(f"greylag-{name}")), *map(str, arguments)]


def run(name: str, *arguments: object, log: Path) -> str:
    """Run a program to its end, as `running` keeps it, and return what it printed on stdout.

    Raises:
        RuntimeError: It failed; the message ends with its last words.
    """
    with running(name, *arguments, log=log) as process:
        said, _ = process.communicate()
    if process.returncode:
        last = log.read_text().strip().splitlines()[-2:]
        raise RuntimeError(f"greylag-{name} {arguments[0]} failed ({process.returncode}): {' '.join(last)}")
    return said


@contextmanager
def running(
    name: str, *arguments: object, log: Path, talk: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Keep a program running for the length of a block.

    Args:
        name: client, coordinator or router.
        arguments: Its command line.
        log: File that its stderr is appended to, unless `talk` says otherwise.
        talk: Where its stderr goes instead, as for `subprocess.Popen`.
        environment: Variables to set besides those of this process.

    Raises:
        RuntimeError: `stop_all` was called.
    """
    with log.open("a") as file:
        with _starting:
            if _ending.is_set():
                raise RuntimeError("no process is started any more")
            process = subprocess.Popen(
                program(name, *arguments),
                stdin=subprocess.DEVNULL,  # no terminal to ask at: a program that could prompt must do without
                stdout=subprocess.PIPE,
                stderr=talk or file,
                text=True,
                start_new_session=True,
                env=os.environ | (environment or {}),
            )
            _running.add(process)
        with process:
            try:
                yield process
            finally:
                _end(process)
                _running.discard(process)


def perform(name: str, play: Callable[[Path], dict[str, Any]], *, resume: bool = False) -> dict[str, Any]:
    """Run what `make` calls by a name to its end, or to one sentence about why it ended early.

    Args:
        name: Of the target, and of its folder.
        play: What is run, in the folder.
        resume: Whether the folder is left as an earlier run left it; else it is not there before.

    Returns:
        The report, with the seconds that it took, which is left in the folder, too.
    """
    parser = argparse.ArgumentParser(prog=f"make {name}")
    parser.add_argument("--folder", type=Path, default=Path("build") / name, help="where everything goes")
    folder: Path = parser.parse_args().folder.resolve()
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # unwinds every `with`, so that no process is left behind
    began = time.monotonic()
    try:
        report = play(folder)
    except (RuntimeError, GreylagError, KeyboardInterrupt) as error:
        sys.stderr.write(f"error: {str(error) or 'interrupted'}\n")
        sys.exit(1)
    finally:
        stop_all()
    report["seconds"] = round(time.monotonic() - began, 1)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    sys.stderr.write(f"Done in {report['seconds']:.0f} s; report.json and all else is in {folder}.\n")
    return report


def stop_all() -> None:
    """Stop every process and start no other, for an end that cannot wait for the threads that look after them."""
    with _starting:
        _ending.set()
    for process in list(_running):
        _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    end_child(process)
    with suppress(ProcessLookupError):  # what it started and left behind; as a rule, nobody
        os.killpg(process.pid, signal.SIGKILL)


def wait_until(look: Callable[[], Found], seconds: float, otherwise: str) -> Found:
    """Look until something is there, and return it.

    Raises:
        RuntimeError: It is not there in time; the message is `otherwise`.
    """
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise RuntimeError(otherwise)
        time.sleep(0.5)
    return found


def first_document(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """Read the JSON line with which a server says that it is ready.

    Raises:
        RuntimeError: It ended instead.
    """
    assert process.stdout is not None  # noqa: S101 - started with a pipe
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"A server ended at its start: {log.read_text().strip()[-500:]}")
    document: dict[str, Any] = json.loads(line)
    return document


def free_port() -> int:
    """Return a loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
