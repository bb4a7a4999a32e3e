"""A base that is spread over memory and disk, as over GPUs: the same expert comes out, or a sentence says why not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from client.job import produce
from client.progress import Progress
from client.training import phase
from client.training.plan import TrainingRequest
from protocol.adapters import Kind
from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Promise
from router.base.device_map import is_offloaded
from router.base.loading import load_base
from tests import factories
from tests.client.conftest import NOW, RECIPE, Cli, Site, make_site
from tests.client.training.test_imported_adapter import elsewhere

SHORT = RECIPE.model_copy(update={"expert_steps": 6, "gate_steps": 4, "eval_every": 2})
SOME = {"cpu": "70KB"}
"""Holds about half of the test bases."""
LITTLE = {"cpu": "20KB"}
"""Holds less than one of them in 4 bits."""


@pytest.fixture(params=["t5", "llama"])
def short_site(request: pytest.FixtureRequest, tmp_path: Path, operator: Identity) -> Site:
    base: Path = request.getfixturevalue(f"{request.param}_base")
    model = load_base(str(base), device="auto", max_memory=SOME).model
    assert is_offloaded(model)
    assert {"cpu", "disk"} == set(model.hf_device_map.values())
    return make_site(tmp_path, base, factories.make_pool(base, operator, SHORT), operator)


def trained(site: Site, name: str, *, spread: bool, **order: Any) -> Bundle:
    where: dict[str, Any] = {"device": "auto", "max_memory": SOME} if spread else {"device": "cpu"}
    return produce(site.workspace, TrainingRequest((site.data,), name=name, **where, **order), lambda _: None, NOW)


def assert_alike(one: Bundle, other: Bundle) -> None:
    for file in (ADAPTER_WEIGHTS, GATES):
        ours, theirs = load_file(one.folder / file), load_file(other.folder / file)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_the_expert_and_its_gates_are_the_same(short_site: Site, kind: Kind) -> None:
    plain, spread = (
        trained(short_site, name, spread=name == "spread", overrides={"kind": kind}) for name in ("plain", "spread")
    )
    assert_alike(plain, spread)


def test_so_is_a_bottleneck_adapter(site: Site) -> None:
    few = {"kind": "bottleneck", "expert_steps": 2, "gate_steps": 2, "eval_every": 2}
    plain, spread = (trained(site, name, spread=name == "spread", overrides=few) for name in ("plain", "spread"))
    assert_alike(plain, spread)


def test_so_are_the_gates_of_an_adapter_that_needs_the_weights(t5_base: Path, site: Site, tmp_path: Path) -> None:
    adapter = str(elsewhere(t5_base, "t5", tmp_path / "mine", use_dora=True))
    few = {"gate_steps": 4, "eval_every": 2}
    plain, spread = (
        trained(site, name, spread=name == "spread", adapter=adapter, overrides=few) for name in ("plain", "spread")
    )
    assert_alike(plain, spread)


def test_so_is_one_that_was_stopped_in_both_phases(short_site: Site) -> None:
    def stop(event: Progress) -> None:
        if (event.phase, event.step) == where:
            raise KeyboardInterrupt

    seen: list[Progress] = []
    order = TrainingRequest((short_site.data,), name="spread", device="auto", max_memory=SOME)
    for where in [("expert", 3), ("gates", 4)]:  # noqa: B007 - `stop` looks
        with pytest.raises(KeyboardInterrupt):
            produce(short_site.workspace, order, stop, NOW)
    spread = produce(short_site.workspace, order, seen.append, NOW)
    assert [(event.phase, event.step) for event in seen] == [("gates", 3), ("gates", 4)]
    assert_alike(trained(short_site, "plain", spread=False), spread)


def test_nothing_that_was_fetched_is_kept_for_the_backward_pass(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    run = phase.run

    def look(work: phase.Phase, *rest: Any) -> None:
        kept.append(not work.request.recompute)
        run(work, *rest)

    monkeypatch.setattr(phase, "run", look)
    few = {"expert_steps": 2, "gate_steps": 2, "eval_every": 2}
    for name in ("plain", "spread"):
        trained(site, name, spread=name == "spread", overrides=few)
    assert kept == [True, True, False, False]


def test_several_gpus_take_no_larger_batch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"expert_steps": 4, "gate_steps": 2, "eval_every": 2}
    plain = trained(site, "plain", spread=False, overrides=few)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # for which the Trainer would double it
    order = TrainingRequest((site.data,), name="beside", overrides=few)
    assert_alike(plain, produce(site.workspace, order, lambda _: None, NOW))


REFUSED: list[tuple[dict[str, Any], Code, str]] = [
    ({"overrides": {"kind": "dora"}}, Code.KIND_UNSUPPORTED, "DoRA expert cannot be trained here"),
    ({"privacy": Promise(epsilon=8, delta=1e-5)}, Code.SETTINGS_INVALID, "--epsilon goes without an offloaded base"),
    ({"max_memory": LITTLE, "quantise": "4bit"}, Code.SETTINGS_INVALID, "GPUs alone or in memory alone"),
    ({"max_memory": LITTLE, "quantise": "8bit"}, Code.SETTINGS_INVALID, "GPUs alone or in memory alone"),
    ({"max_memory": {"cpu": "1KB"}}, Code.SETTINGS_INVALID, "not hold even its largest layer"),
    ({"max_memory": {"7": "1GiB"}}, Code.SETTINGS_INVALID, "no GPU 7 here; found"),
    ({"device": "cpu"}, Code.SETTINGS_INVALID, "say nothing of a base on the device cpu"),
]


@pytest.mark.parametrize(("asked", "code", "sentence"), REFUSED)
def test_what_cannot_be_done_is_a_sentence(site: Site, asked: dict[str, Any], code: Code, sentence: str) -> None:
    order: dict[str, Any] = {"device": "auto", "max_memory": SOME, **asked}
    with pytest.raises(Refused, match=sentence) as refused:
        produce(site.workspace, TrainingRequest((site.data,), **order), lambda _: None, NOW)
    assert refused.value.code is code


def test_the_program_takes_amounts(short_site: Site, cli: Cli) -> None:
    call = ("train", "-w", short_site.workspace.root, "--data", short_site.data, "--device", "auto")
    status, out, err = cli(*call, "--max-memory", "cpu=70KB")
    assert status == 0, err
    assert len(out.split()) == 2
    status, _, err = cli(*call, "--max-memory", "cpu=much")
    assert status == Code.SETTINGS_INVALID.fate.exit
    assert "'cpu=much' is no amount of memory on a device." in err
