"""Several processes that train one expert: what comes out is what one process makes of the same batches."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from client.job import produce
from client.progress import Progress
from client.training.plan import TrainingRequest
from protocol.bundle import ADAPTER_WEIGHTS, GATES, open_bundle
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Promise
from tests import factories
from tests.client.conftest import NOW, RECIPE, Site, make_site

SHORT = RECIPE.model_copy(update={"expert_steps": 6, "gate_steps": 4, "eval_every": 2, "batch_size": 8})
ROOT = Path(__file__).parents[3]
PROGRAM = "from client.cli.main import main; main()\n"


def test_two_processes_go_on_where_one_was_stopped(tmp_path: Path, t5_base: Path, operator: Identity) -> None:
    def stop(event: Progress) -> None:
        if (event.phase, event.step) == ("expert", 3):
            raise KeyboardInterrupt

    pool = factories.make_pool(t5_base, operator, SHORT)
    sites = [make_site(tmp_path / name, t5_base, pool, operator) for name in ("alone", "together")]
    alone = produce(sites[0].workspace, order(sites[0]), lambda _: None, NOW)
    with pytest.raises(KeyboardInterrupt):
        produce(sites[1].workspace, order(sites[1]), stop, NOW)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "program.py"),
            "train", "-w", str(sites[1].workspace.root), "--data", str(sites[1].data), "--device", "cpu",
            "--share", "means",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digest, folder = done.stdout.split()  # said once, by the process that leads
    together = open_bundle(Path(folder))
    assert together.digest == digest
    assert [done.stderr.count(said) for said in ("The bundle will tell", "Loss on held-out rows")] == [1, 1]
    for file in (ADAPTER_WEIGHTS, GATES):
        ours, theirs = load_file(together.folder / file), load_file(alone.folder / file)
        assert ours.keys() >= theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-4)


def order(site: Site, **asked: Any) -> TrainingRequest:
    return TrainingRequest((site.data,), **{"device": "cpu", **asked})


REFUSED: list[tuple[dict[str, str], dict[str, Any], str]] = [
    ({}, {"device": "auto"}, "over a base that is spread"),
    ({"LOCAL_WORLD_SIZE": "1"}, {}, "on several machines"),
    ({"ACCELERATE_USE_FSDP": "true"}, {}, "through FSDP"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "through DeepSpeed"),
    ({}, {"privacy": Promise(epsilon=8, delta=1e-5)}, "goes without several processes"),
    ({}, {"micro_batch": 16}, "The 32 examples that are in memory at once are no divisor of the batch of 16"),
    ({"WORLD_SIZE": "3"}, {}, "The 3 examples that are in memory at once are no divisor of the batch of 16"),
]


@pytest.mark.parametrize(("environment", "asked", "sentence"), REFUSED)
def test_what_several_processes_cannot_do_is_a_sentence(
    site: Site, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], asked: dict[str, Any], sentence: str
) -> None:
    for name, value in ({"WORLD_SIZE": "2", "RANK": "0"} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Refused, match=sentence) as refused:
        produce(site.workspace, order(site, **asked), lambda _: None, NOW)
    assert refused.value.code is Code.SETTINGS_INVALID
