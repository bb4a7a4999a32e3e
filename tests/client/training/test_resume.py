"""A training client that is killed, and one whose disk is full, go on where they stopped."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from client.job import produce
from client.progress import Progress
from client.training import phase, trainer
from client.training.request import TrainingRequest
from client.workspace.paths import ClientWorkspace
from protocol.errors import Code, Refused
from tests.client.conftest import NOW, Cli, Site

FLAGS = {"expert_steps": 160, "gate_steps": 4, "eval_every": 10}


def train_until(site: Site, step: int) -> None:
    """Train in a process of its own and kill it without warning after a step."""
    flags = [text for name, value in FLAGS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [
        *(sys.executable, "-c", "from client.cli.main import main; main()", "train", "--data", str(site.data)),
        *("--progress", "jsonl", "--device", "cpu", "--workspace", str(site.workspace.root), *flags),
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("{") and json.loads(line)["step"] >= step:
                process.send_signal(signal.SIGKILL)
                break
        process.stderr.read()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_client_goes_on_where_it_stopped(site: Site) -> None:
    train_until(site, 15)
    checkpoints = list(site.workspace.runs.glob("*/expert/checkpoint-*"))
    assert checkpoints
    torn = checkpoints[0].with_name("checkpoint-159")
    shutil.copytree(checkpoints[0], torn)
    (torn / phase.COMPLETE).unlink(missing_ok=True)
    seen: list[Progress] = []
    order = TrainingRequest(site.data, device="cpu", overrides=FLAGS)
    with site.workspace.lock():  # the dead process holds it no longer
        bundle = produce(site.workspace, site.settings, order, seen.append, NOW)
    expert = [event.step for event in seen if event.phase == "expert"]
    assert 10 < expert[0] < 159
    assert expert == list(range(expert[0], 161))
    assert bundle.spec.name == "anna"
    again: list[Progress] = []
    same = produce(site.workspace, site.settings, order, again.append, NOW)
    assert (same.digest, again) == (bundle.digest, [])


def test_a_disk_that_fills_up_is_one_sentence(site: Site, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    command = (
        *("train", "--data", site.data, "-w", site.workspace.root, "--device", "cpu"),
        *("--expert-steps", 4, "--gate-steps", 2, "--eval-every", 2),
    )

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_file", full)
        status, out, err = cli(*command)
        assert (status, out) == (Code.STORAGE_FULL.fate.exit, "")
        assert err.count("error: ") == 1
        assert "Traceback" not in err
        assert not list(site.workspace.runs.glob("*/expert/checkpoint-*"))
    with monkeypatch.context() as patch:
        patch.setattr("client.bundle.pack.shutil.copyfile", no_space)
        assert cli(*command)[0] == Code.STORAGE_FULL.fate.exit
        assert list(site.workspace.bundles.iterdir()) == []
    status, out, err = cli(*command)
    assert (status, len(out.split()[0])) == (0, 64), err


def test_a_second_process_is_sent_away(site: Site, cli: Cli) -> None:
    with site.workspace.lock():
        status, _, err = cli("train", "--data", site.data, "-w", site.workspace.root)
    assert status == Code.WORKSPACE_BUSY.fate.exit
    assert "Another greylag-client works in" in err


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    with ClientWorkspace(tmp_path).lock(), pytest.raises(Refused), ClientWorkspace(tmp_path).lock():
        pass
    with ClientWorkspace(tmp_path).lock():
        pass
