"""A training client that is killed, and one whose disk is full, go on where they stopped."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from client.job import produce
from client.progress import Progress
from client.runs import history
from client.training import trainer
from client.training.plan import TrainingRequest
from client.workspace.paths import ClientWorkspace
from protocol.bundle import ADAPTER_WEIGHTS, GATES
from protocol.errors import Code, Refused, Unavailable
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
    (torn / history.COMPLETE).unlink(missing_ok=True)
    seen: list[Progress] = []
    order = TrainingRequest((site.data,), device="cpu", overrides=FLAGS)
    with site.workspace.lock():  # the dead process holds it no longer
        bundle = produce(site.workspace, order, seen.append, NOW)
    expert = [event.step for event in seen if event.phase == "expert"]
    assert 10 < expert[0] < 159
    assert expert == list(range(expert[0], 161))
    assert bundle.spec.name == "anna"
    again: list[Progress] = []
    same = produce(site.workspace, order, again.append, NOW)
    assert (same.digest, again) == (bundle.digest, [])


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C means what it does in a fresh process, whatever other tests have left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_keeps_the_step_and_the_same_command_goes_on(site: Site) -> None:
    def stop(event: Progress) -> None:
        seen.append(event)
        if (event.phase, event.step) == where:
            signal.raise_signal(signal.SIGINT)

    few = {"expert_steps": 6, "gate_steps": 4, "eval_every": 10}
    seen: list[Progress] = []
    said: list[str] = []
    request = TrainingRequest((site.data,), device="cpu", overrides=few)
    for where in [("expert", 3), ("gates", 4)]:
        with pytest.raises(Unavailable, match=rf"after step {where[1]} \({where[0]}\); a checkpoint") as stopped:
            produce(site.workspace, request, stop, NOW, said.append)
        assert (stopped.value.code, "continues there" in stopped.value.hint) == (Code.INTERRUPTED, True)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    bundle = produce(site.workspace, request, stop, NOW, said.append)
    assert [(event.phase, event.step) for event in seen] == [
        *(("expert", step) for step in range(1, 7)), *(("gates", step) for step in range(1, 5))
    ]  # fmt: skip
    assert said[:2] == [
        "Continuing a training that was stopped after step 3 (expert).",
        "Continuing a training that was stopped after step 4 (gates).",
    ]
    at_once = produce(site.workspace, replace(request, name="at-once"), lambda _: None, NOW)
    for name in (ADAPTER_WEIGHTS, GATES):
        other = load_file(at_once.folder / name)
        for key, tensor in load_file(bundle.folder / name).items():
            torch.testing.assert_close(tensor, other[key])


@pytest.mark.usefixtures("listening")
def test_a_second_ctrl_c_stops_at_once(site: Site) -> None:
    def stop(_: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        produce(site.workspace, TrainingRequest((site.data,), device="cpu"), stop, NOW)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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
