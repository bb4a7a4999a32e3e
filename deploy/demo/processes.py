"""Real processes over loopback, each the program that a person would type; none outlives the demo."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from protocol.errors import GreylagError

STOP_S = 10.0
"""How long a process may take to stop by itself, in seconds."""
_running: set[subprocess.Popen[str]] = set()
_ending = threading.Event()
_starting = threading.Lock()


def program(name: str, *arguments: object) -> list[str]:
    """Return the command line of one of the three programs."""
    return [str(Path(sys.executable).with_name(f"greylag-{name}")), *map(str, arguments)]


def run(name: str, *arguments: object, log: Path) -> str:
    """Run a program to its end.

    Args:
        name: client, coordinator or router.
        arguments: Its command line.
        log: File that its stderr is appended to.

    Returns:
        What it printed on stdout.

    Raises:
        RuntimeError: It failed; the message ends with its last words.
    """
    with log.open("a") as talk:
        # No terminal to ask at: a program that could prompt must do without.
        done = subprocess.run(
            program(name, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=talk,
            text=True,
            check=False,
        )
    if done.returncode:
        last = log.read_text().strip().splitlines()[-2:]
        raise RuntimeError(f"greylag-{name} {arguments[0]} failed ({done.returncode}): {' '.join(last)}")
    return done.stdout


@contextmanager
def running(
    name: str,
    *arguments: object,
    log: Path,
    stderr: IO[str] | int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Keep a program running for the length of a block.

    Args:
        name: client, coordinator or router.
        arguments: Its command line.
        log: File that its stderr is appended to, unless `stderr` says otherwise.
        stderr: Where its stderr goes instead.
        environment: Variables to set besides those of this process.

    Raises:
        RuntimeError: `stop_all` was called.
    """
    with log.open("a") as talk:
        with _starting:
            if _ending.is_set():
                raise RuntimeError("no process is started any more")
            process = subprocess.Popen(
                program(name, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr or talk,
                text=True,
                start_new_session=True,
                env=os.environ | (environment or {}),
            )
            _running.add(process)
        try:
            yield process
        finally:
            _stop(process)
            _running.discard(process)


def perform(play: Callable[[], None]) -> None:
    """Run a demo to its end, or to one sentence about why it ended early."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        play()
    except (RuntimeError, GreylagError, KeyboardInterrupt) as error:
        sys.stderr.write(f"error: {str(error) or 'interrupted'}\n")
        sys.exit(1)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Unwinds every `with`, so that no process is left behind.
    raise KeyboardInterrupt


def stop_all() -> None:
    """Stop every process and start no other, for an end that cannot wait for the threads that look after them."""
    with _starting:
        _ending.set()
    for process in list(_running):
        _stop(process)


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
        port: int = probe.getsockname()[1]
        return port


def _stop(process: subprocess.Popen[str]) -> None:
    # The whole group: a training client has worker threads and might have children.
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        os.killpg(process.pid, number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            continue
    if process.stdout:
        process.stdout.close()
    if process.stderr:
        process.stderr.close()
