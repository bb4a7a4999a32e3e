"""Expert and gates trained together, on tiny models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from client.job import produce
from client.runs.plot import PICTURE
from client.runs.record import read_record
from client.training import adapters, gates, phase, trainer
from client.training.plan import TrainingRequest, lay_modules, make_plan
from protocol.adapters import Kind
from protocol.bundle import ADAPTER_WEIGHTS, CARD, GATES
from router.base.linear import find_linear
from router.base.loading import load_base
from router.training.gated_linear import attach_gates, detach_gates, gate_tuners
from tests.client.conftest import NOW, RECIPE, Cli, Site
from tests.client.training.test_training import rows_of

SHORT = {"expert_steps": 20, "eval_every": 10}


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "bottleneck"])
def test_the_gate_multiplies_the_expert_in_training_as_it_does_afterwards(
    site: Site, tmp_path: Path, kind: Kind
) -> None:
    base = load_base(str(site.base), device="cpu")
    recipe = RECIPE.model_copy(update={"kind": kind})
    modules = lay_modules(site.pool.spec.modules, recipe)
    linears = {path: find_linear(base.model, path) for path in modules}
    expert = adapters.put_on(base, recipe, modules)
    together = gate_tuners(base.model, linears)
    draw = torch.Generator().manual_seed(0)
    learning = trainer.trainable(base.model)
    for tensor in learning.values():
        tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.3)
    probe = {"input_ids": torch.tensor([[6, 14, 15, 16, 1]]), "decoder_input_ids": torch.tensor([[0, 16, 15]])}
    with torch.no_grad():
        said = base.model.eval()(**probe).logits
        detach_gates(base.model, together)
        assert not torch.allclose(base.model(**probe).logits, said, atol=1e-2)
        expert.save(tmp_path / "adapter")
        expert.take_off()
        after = attach_gates(base.model, tmp_path / "adapter", modules)
        for path, layer in after.items():
            layer.gate.copy_(together[path].gate)
        torch.testing.assert_close(base.model(**probe).logits, said, rtol=1e-4, atol=1e-4)


def test_both_learn_and_nothing_else(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(site.base), device="cpu")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    modules = lay_modules(site.pool.spec.modules, RECIPE)
    linears = {path: find_linear(base.model, path) for path in modules}
    expert = adapters.put_on(base, RECIPE, modules)
    started: dict[str, torch.Tensor] = {}
    run = phase.run

    def watch(work: phase.Phase, model: nn.Module, *rest: object) -> None:
        started.update({name: tensor.clone() for name, tensor in trainer.trainable(model).items()})
        run(work, model, *rest)  # type: ignore[arg-type] # the rest as it came
        moved = trainer.trainable(model)
        assert started.keys() == moved.keys()
        assert not any(torch.equal(started[name], moved[name]) for name in started)

    monkeypatch.setattr(phase, "run", watch)
    recipe = RECIPE.model_copy(update={"expert_steps": 6, "eval_every": 3})
    work = phase.Phase("joint", tmp_path / "joint", TrainingRequest((), device="cpu"), recipe)
    vectors = gates.train(work, base, gate_tuners(base.model, linears), rows_of(site.data, base), lambda _: None)
    assert len(started) == 3 * len(modules)
    assert set(vectors) == {f"{path}.gate" for path in modules}
    expert.take_off()
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_joint_bundle_says_so_and_helps(site: Site, cli: Cli) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    status, out, err = cli("train", "--joint", "--data", site.data, "-w", site.workspace.root, "--device=cpu", *flags)
    assert status == 0, err
    folder = Path(out.split()[-1])
    (run,) = (path.parent for path in site.workspace.runs.glob("*/run.json"))
    record = read_record(run)
    assert record is not None
    assert record.joint
    assert record.steps == {"joint": 20}
    assert record.losses["joint"] < record.losses["base"]
    assert not list(run.glob("*/checkpoint-*"))
    assert (run / PICTURE).is_file()
    card = (folder / CARD).read_text()
    assert "| gates | together with the expert |" in card
    assert "| expert | 20 steps of 16" in card


def test_joint_and_post_hoc_are_two_experts(site: Site) -> None:
    def trained(name: str, *, joint: bool) -> Path:
        order = TrainingRequest(
            (site.data,), name=name, device="cpu", overrides=SHORT | {"gate_steps": 10}, joint=joint
        )
        bundle = produce(site.workspace, order, lambda _: None, NOW)
        assert bundle.spec.joint == joint
        return bundle.folder

    together, after = trained("together", joint=True), trained("after", joint=False)
    for name in (ADAPTER_WEIGHTS, GATES):
        one, other = load_file(together / name), load_file(after / name)
        assert one.keys() == other.keys()
        assert not any(torch.equal(one[key], other[key]) for key in one)
    asked = [TrainingRequest((site.data,), joint=joint) for joint in (False, True)]
    assert len({make_plan(site.workspace, each).run_id() for each in asked}) == 2
