"""`make demo`, as a person would run it (slow: a minute or two)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.house.sources import ROOT

pytestmark = pytest.mark.slow


def demo(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.demo", "--folder", folder], cwd=ROOT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def left_running(folder: Path) -> list[str]:
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if str(folder) in command and str(os.getpid()) not in command]


@pytest.mark.timeout(600)
def test_the_demo_shows_what_it_promises(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    process = demo(folder)
    said, _ = process.communicate(timeout=580)
    assert process.returncode == 0, said[-3000:]
    report = json.loads((folder / "report.json").read_text())
    assert report["schema"] == 1
    assert report["contributors"] == report["release"] == 6
    assert report["seconds"] < 480
    accuracy, composed = report["accuracy"], report["composed"]
    assert accuracy["own_expert"] >= 0.9
    assert accuracy["routed"] > accuracy["merged"] + 0.2
    assert accuracy["routed"] > accuracy["base"] + 0.4
    assert composed["routed"] > max(composed["merged"], composed["own_expert"], composed["base"]) + 0.1
    assert {entry["case"]: entry["code"] for entry in report["refused"]} == {
        "a flipped byte": "DIGEST_MISMATCH",
        "a NaN": "NOT_FINITE",
        "a weight of 1e20": "NORM_LIMIT",
        "someone else's signature": "BAD_SIGNATURE",
        "another base model": "BASE_MISMATCH",
    }
    assert (folder / "heat-map.png").read_bytes().startswith(b"\x89PNG")
    assert "requests of" in (folder / "heat-map.html").read_text()
    assert left_running(folder) == []


@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "demo"
    process = demo(folder)
    deadline = time.monotonic() + 120
    while not list(folder.glob("contributors/*/runs/*")):  # somebody trains
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert left_running(folder) == []
