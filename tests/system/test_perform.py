"""How a demo ends early: everything is put away, and one sentence says why."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.sources import ROOT


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", "error: interrupted\n"),
        ("raise RuntimeError('A server ended.')", "error: A server ended.\n"),
    ],
)
def test_a_demo_that_ends_early_says_why(tmp_path: Path, end: str, said: str) -> None:
    program = f"""
import os, signal
from deploy.demo.processes import perform

def play(folder):
    try:
        {end}
    finally:
        print("put away")

perform("demo", play)
"""
    command = [sys.executable, "-c", program, "--folder", str(tmp_path / "demo")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)  # noqa: PLW1510 - it is to fail
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "put away\n", said)
