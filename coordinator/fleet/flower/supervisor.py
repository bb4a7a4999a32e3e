"""Flower's SuperLink as a child process."""

import json
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx

from coordinator.fleet.flower.gateway import LinkConfig
from protocol.errors import Code, Unavailable
from protocol.programs import end_child

START_S = 60.0
"""How long Flower's server may take to come up, in seconds."""


class Link:
    """Flower's server as a child process; it ends with this one, however this one ends.

    Args:
        config: What the child is told.
        log: File that its talk is appended to.
    """

    def __init__(self, config: LinkConfig, log: Path) -> None:
        self._config, self._log = config, log
        self._process: subprocess.Popen[str] | None = None
        self.inner = 0
        """Port of the inner door."""
        self.outer = 0
        """Port of the outer one."""

    @property
    def is_up(self) -> bool:
        """Whether the child runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the child and wait until it listens.

        Raises:
            Unavailable: `BUSY` if it does not come up.
        """
        with self._log.open("a") as talk:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "coordinator.fleet.flower.gateway"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=talk, text=True,
            )  # fmt: skip
        assert self._process.stdin is not None  # noqa: S101 - started with pipes
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(self._config.line())
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(Code.BUSY, f"Flower's server does not start; see {self._log}.", "It is tried again.")
        where = json.loads(line)
        self.inner, self.outer = where["inner"], where["outer"]
        _await(self.inner)

    def stop(self) -> None:
        """End the child."""
        if self._process is not None:
            end_child(self._process)


def _await(port: int) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == httpx.codes.OK:
                return
        threading.Event().wait(0.1)
    raise Unavailable(Code.BUSY, "Flower's server does not come up.", "It is tried again.")
