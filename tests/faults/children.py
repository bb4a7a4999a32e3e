"""Processes that can be killed a thousand times: each runs the real program, in a fork of one that imported everything.

To import torch takes a program seconds, to fork the same imports 20 milliseconds: what is killed is what a person
starts, from the first line of its `main` on.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")  # a parent that computes in threads cannot be forked
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults.preload"])


class Child:
    """A process that ends with this one at the latest.

    Args:
        target: What it runs.
        arguments: What that is given.
        log: File that its stderr is appended to.
        environment: Variables to set besides those of this process.
    """

    def __init__(
        self,
        target: Callable[..., object],
        *arguments: object,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._said, theirs = _CONTEXT.Pipe(duplex=False)
        self._heard = b""
        self._process = _CONTEXT.Process(
            target=_be, args=(target, arguments, theirs, log, dict(environment or {})), daemon=True
        )
        self._process.start()
        theirs.close()
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """How it ended, a signal's number negative; None if it runs."""
        return self._process.exitcode

    def signal(self, number: int) -> None:
        """Send it a signal; `SIGKILL` is a power cut."""
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it as a power cut does, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self._process.join(10)

    def ended(self, seconds: float) -> int | None:
        """Wait for its end and return its status; None if it does not end in time."""
        self._process.join(seconds)
        return self.status

    def document(self, seconds: float = 0.0) -> dict[str, Any] | None:
        """Return the line of JSON that it printed, if it has or does so in time."""
        end = time.monotonic() + seconds
        while b"\n" not in self._heard and self._said.poll(max(0.0, end - time.monotonic())):
            if not (more := os.read(self._said.fileno(), 1 << 16)):
                return None
            self._heard += more
        line, newline, _ = self._heard.partition(b"\n")
        return json.loads(line) if newline else None


def coordinate(*words: object) -> None:
    """Be `greylag-coordinator`."""
    from coordinator.cli.main import main  # noqa: PLC0415 - the parent need not have it

    sys.argv = ["greylag-coordinator", *map(str, words)]
    main()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _be(
    target: Callable[..., object],
    arguments: tuple[object, ...],
    said: Connection,
    log: Path,
    environment: Mapping[str, str],
) -> None:
    """Run something with its own streams and environment, and no longer than whoever started it lives."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.dup2(said.fileno(), 1)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    target(*arguments)
