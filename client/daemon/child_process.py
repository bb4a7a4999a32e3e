"""A process that the daemon keeps alive."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from protocol.programs import end_child

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


class Child:
    """A process that is started again whenever it ends, its command line made anew."""

    def __init__(
        self,
        name: str,
        command: Callable[[], list[str]],
        environment: Mapping[str, str],
        log: Path,
        say: Callable[[str], None],
    ) -> None:
        self._name, self._command, self._environment = name, command, dict(environment)
        self._log, self._say = log, say
        self._process: subprocess.Popen[bytes] | None = None
        self._pause_s, self._not_before, self._started = FIRST_PAUSE_S, 0.0, 0.0
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Process number while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def look(self) -> bool:
        """Start the child if it does not run, with growing pauses while it keeps ending at once.

        Returns:
            Whether it has ended since the last look.
        """
        now, ended = time.monotonic(), False
        if self._process is not None:
            if self._process.poll() is None:
                return False
            ended = True
            lived = now - self._started
            self._say(f"the {self._name} ended with status {self._process.returncode} after {lived:.0f} s")
            self.stop()
            self._pause_s = FIRST_PAUSE_S if lived > LONGEST_PAUSE_S else min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._not_before = now + self._pause_s
        if now < self._not_before:
            return ended
        with self._log.open("ab") as talk:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs
                self._command(), env=self._environment, stdin=subprocess.PIPE, stdout=talk, stderr=talk,
                start_new_session=True,
            )  # fmt: skip
        self._started, self.starts = now, self.starts + 1
        self._say(f"the {self._name} runs as process {self._process.pid}")
        return ended

    def stop(self, *, at_once: bool = False) -> None:
        """End the child, or put away what one that has ended leaves."""
        if self._process is not None:
            end_child(self._process, at_once=at_once)
            if not at_once:
                self._process = None


def end_with_parent(leave: Callable[[], object], grace_s: float) -> None:
    """Have this process end when its standard input does: ask it to leave, and see to it some seconds later."""

    def watch() -> None:
        sys.stdin.read()
        leave()
        time.sleep(grace_s)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
