"""An expert and its gates, trained on tiny models of both kinds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DataCollatorForSeq2Seq

from client.data.columns import DataColumns, DataSource
from client.data.examples import Examples, read_examples
from client.progress import Progress
from client.runs import history
from client.runs.plot import PICTURE, draw
from client.training import gates, phase, trainer
from client.training.plan import TrainingRequest
from protocol.adapters import LoraModule
from protocol.bundle import ADAPTER_CONFIG, CARD, FILES, GATES, open_bundle
from protocol.errors import Code, Refused
from protocol.spec import Recipe
from router.base.loading import Base, load_base
from router.training.gated_linear import attach_gates
from tests.client.conftest import PLANTED, RECIPE, SPLIT_KEY, Site, Trained

ON_CPU = TrainingRequest((), device="cpu")


def rows_of(data: Path, base: Base) -> Examples:
    source = DataSource((data,), DataColumns(), SPLIT_KEY)
    return read_examples(source, base.tokenizer, base.architecture, RECIPE, positions=None)


def held_out_loss(model: nn.Module, base: Base, data: Path) -> float:
    examples = rows_of(data, base)
    batch = DataCollatorForSeq2Seq(base.tokenizer)([examples.held_out[row] for row in range(len(examples.held_out))])
    with torch.no_grad():
        return float(model.eval()(**batch).loss)


def test_an_expert_lowers_the_loss_on_rows_it_never_saw(trained: Trained) -> None:
    base = load_base(str(trained.site.base), device="cpu")
    before = held_out_loss(base.model, base, trained.site.data)
    expert = PeftModel.from_pretrained(base.model, trained.bundle.folder)
    assert held_out_loss(expert, base, trained.site.data) < 0.95 * before


def test_a_bundle_opens_in_plain_peft_and_says_what_the_trained_model_said(trained: Trained) -> None:
    base = load_base(str(trained.site.base), device="cpu")
    expert = PeftModel.from_pretrained(base.model, trained.bundle.folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(expert(**trained.probe).logits, trained.logits, rtol=0, atol=0)


def test_gates_were_trained_for_every_module_of_the_pool(trained: Trained) -> None:
    vectors = load_file(trained.bundle.folder / GATES)
    assert set(vectors) == {f"{path}.gate" for path in trained.site.pool.spec.modules}
    assert all(vector.dtype == torch.float32 and vector.std() > 0 for vector in vectors.values())


def test_a_bundle_names_the_base_as_the_pool_does_and_no_local_path(trained: Trained) -> None:
    folder = trained.bundle.folder
    assert f'"base_model_name_or_path":"{trained.site.pool.spec.base.name}"' in (folder / ADAPTER_CONFIG).read_text()
    for name in (*FILES, "bundle.dsse.json"):
        assert str(trained.site.base.parent).encode() not in (folder / name).read_bytes()


def test_nothing_of_the_data_is_in_a_bundle(trained: Trained) -> None:
    assert PLANTED in trained.site.data.read_text()
    for path in open_bundle(trained.bundle.folder).folder.iterdir():
        assert PLANTED.encode() not in path.read_bytes()
    assert "100 to 1,000" in (trained.bundle.folder / CARD).read_text()


def test_no_copy_of_the_data_stays_in_the_workspace(trained: Trained) -> None:
    for path in trained.site.workspace.root.rglob("*"):
        assert path.is_dir() or PLANTED.encode() not in path.read_bytes()


def test_only_gates_learn_in_the_second_phase(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(trained.site.base), device="cpu")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    started: dict[str, torch.Tensor] = {}
    run = phase.run

    def watch(work: phase.Phase, model: nn.Module, *rest: object) -> None:
        started.update({name: tensor.clone() for name, tensor in trainer.trainable(model).items()})
        run(work, model, *rest)  # type: ignore[arg-type] # the rest as it came

    monkeypatch.setattr(phase, "run", watch)
    work = phase.Phase("gates", tmp_path / "gates", ON_CPU, RECIPE.model_copy(update={"gate_steps": 3}))
    modules = dict(trained.bundle.spec.modules)
    examples = rows_of(trained.site.data, base)
    vectors = gates.train(
        work, base, attach_gates(base.model, trained.bundle.folder, modules), examples, lambda _: None
    )
    assert set(started) == set(vectors)
    assert all(bool((tensor == 0).all()) for tensor in started.values())  # sigmoid(0 . u) = 0.5
    assert all(bool((tensor != 0).any()) for tensor in vectors.values())
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_picture_shows_losses_and_gates(trained: Trained) -> None:
    (run,) = {path.parent for path in trained.site.workspace.runs.glob("*/run.json")}
    openings = json.loads((run / history.OPENINGS).read_bytes())
    assert list(openings) == list(trained.bundle.spec.modules)
    assert all(0 < opening < 1 for opening in openings.values())
    assert any(abs(opening - 0.5) > 1e-3 for opening in openings.values())
    (run / PICTURE).unlink(missing_ok=True)
    picture = draw(run)
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = picture.stat().st_mtime_ns
    assert draw(run).stat().st_mtime_ns == written


class Line(nn.Module):
    """(w - 3)^2: the smallest model that the Trainer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
        return {"loss": ((self.w - 3.0) ** 2).sum(), "logits": self.w}


def run_line(folder: Path, base: Base, site: Site, recipe: Recipe, seen: list[Progress], steps: int = 6) -> Line:
    model = Line()
    work = phase.Phase("expert", folder, ON_CPU, recipe.model_copy(update={"expert_steps": steps}))
    phase.run(work, model, base.tokenizer, rows_of(site.data, base), seen.append)
    return model


def test_the_best_checkpoint_wins_not_the_last(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(site.base), device="cpu")
    seen: list[float] = []
    losses = iter([5.0, 2.0, 1.0, 9.0])

    measure = trainer.PhaseTrainer.evaluate

    def evaluate(trainer: trainer.PhaseTrainer, **options: object) -> dict[str, float]:
        seen.append(trainer.model.w.item())
        return {**measure(trainer, **options), "eval_loss": next(losses)}

    monkeypatch.setattr(trainer.PhaseTrainer, "evaluate", evaluate)
    recipe = RECIPE.model_copy(update={"eval_every": 2})
    model = run_line(tmp_path / "run", base, site, recipe, [])
    assert len(set(seen)) == 4
    assert float(model.w.detach()) == seen[2]


def test_a_checkpoint_that_was_cut_off_is_thrown_away(site: Site, tmp_path: Path) -> None:
    base = load_base(str(site.base), device="cpu")
    recipe = RECIPE.model_copy(update={"eval_every": 2})
    folder = tmp_path / "run"
    run_line(folder, base, site, recipe, [], steps=4)
    newest = history.newest_checkpoint(folder)
    assert newest is not None
    assert newest.name == "checkpoint-4"
    torn = folder / "checkpoint-6"
    torn.mkdir()
    (torn / trainer.TRAINABLE).write_bytes(b"half")
    phase.sweep(folder)
    assert history.newest_checkpoint(folder) == newest
    assert not torn.exists()
    torn.mkdir()
    seen: list[Progress] = []
    run_line(folder, base, site, recipe, seen, steps=8)
    assert [event.step for event in seen] == [5, 6, 7, 8]


def test_a_run_survives_a_move_of_its_folder(site: Site, tmp_path: Path) -> None:
    base = load_base(str(site.base), device="cpu")
    recipe = RECIPE.model_copy(update={"eval_every": 2})
    run_line(tmp_path / "here", base, site, recipe, [], steps=4)
    (tmp_path / "here").rename(tmp_path / "there")
    seen: list[Progress] = []
    model = run_line(tmp_path / "there", base, site, recipe, seen, steps=6)
    assert [event.step for event in seen] == [5, 6]
    assert float(model.w.detach()) > 0


def test_a_checkpoint_holds_only_what_is_trained(site: Site, tmp_path: Path) -> None:
    base = load_base(str(site.base), device="cpu")
    run_line(tmp_path / "run", base, site, RECIPE, [], steps=2)
    newest = history.newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert all(path.stat().st_mode & 0o077 == 0 for path in [newest, *newest.iterdir()])  # optimizer.pt, too
    assert list(load_file(newest / trainer.TRAINABLE)) == ["w"]


def test_training_that_diverges_is_refused(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(site.base), device="cpu")
    monkeypatch.setattr(Line, "forward", lambda self, **_: {"loss": (self.w * float("nan")).sum(), "logits": self.w})
    with pytest.raises(Refused) as refused:
        run_line(tmp_path / "run", base, site, RECIPE, [], steps=2)
    assert refused.value.code is Code.NOT_FINITE
    assert "learning-rate" in refused.value.hint


def test_a_device_without_memory_is_a_sentence(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(site.base), device="cpu")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Line, "forward", full)
    with pytest.raises(Refused, match="too little memory for 16 examples") as refused:
        run_line(tmp_path / "run", base, site, RECIPE, [], steps=2)
    assert "--micro-batch" in refused.value.hint


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_batch_in_parts_learns_the_same(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Targets of all lengths, so that parts hold more of the batch's tokens or fewer."""
    base = load_base(str(request.getfixturevalue(f"{family}_base")), device="cpu")
    rows, letters = tmp_path / "rows.jsonl", ["a", "b", "c", "d", "e", "f", "a", "b", "c", "d", "e", "f"]
    rows.write_text("".join(
        json.dumps({"input": f"say {letters[at % 6]}", "target": " ".join(letters[: 1 + at % 9])}) + "\n"
        for at in range(40)
    ))  # fmt: skip
    examples, recipe = rows_of(rows, base), RECIPE.model_copy(update={"gate_steps": 2})
    path = {"t5": "encoder.block.0.layer.0.SelfAttention.q", "llama": "model.layers.0.self_attn.q_proj"}[family]
    vectors = []
    for micro_batch in (None, 2):
        torch.manual_seed(0)
        adapter = tmp_path / f"adapter-{micro_batch}"
        write_adapter(adapter, path)
        work = phase.Phase("gates", tmp_path / f"gates-{micro_batch}", replace(ON_CPU, micro_batch=micro_batch), recipe)
        modules = {path: LoraModule(d_in=32, d_out=32, rank=4, alpha=8.0)}
        vectors.append(
            gates.train(work, base, attach_gates(base.model, adapter, modules), examples, lambda _: None)[
                f"{path}.gate"
            ]
        )
    assert vectors[0].abs().max() > 1e-3
    torch.testing.assert_close(vectors[0], vectors[1], rtol=1e-3, atol=1e-6)


def write_adapter(folder: Path, path: str) -> None:
    folder.mkdir()
    prefix = f"base_model.model.{path}"
    save_file(
        {f"{prefix}.lora_A.weight": torch.randn(4, 32), f"{prefix}.lora_B.weight": torch.randn(32, 4)},
        folder / "adapter_model.safetensors",
    )
