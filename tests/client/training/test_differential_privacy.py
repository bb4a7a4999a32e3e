"""Differentially private training: every example's gradient by itself, clipped and blurred, and the budget kept."""

from pathlib import Path

import pytest
import torch
from opacus import GradSampleModule
from opacus.accountants import RDPAccountant
from safetensors.torch import load_file
from torch import Tensor, nn

from client.job import produce
from client.progress import Progress
from client.training import adapters
from client.training.differential_privacy import PrivateTrainer, example_losses, noise_for
from client.training.phase import Phase, _arguments
from client.training.plan import TrainingRequest, plan_modules
from client.training.trainer import PhaseTrainer
from coordinator.admission.check import check_content
from protocol.bundle import ADAPTER_WEIGHTS, CARD, GATES
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Promise
from router.base.loading import Base, load_base
from router.training.gated_linear import attach_gates
from tests import factories
from tests.client.conftest import NOW, RECIPE, Cli, Site, make_site

pytestmark = [
    pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha"),  # opacus finds no tighter bound
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # the first module reads what is frozen
]
SHORT = RECIPE.model_copy(update={"expert_steps": 12, "gate_steps": 4, "eval_every": 4})
PROMISE = Promise(epsilon=8.0, delta=1e-3)
BATCH = {
    "input_ids": torch.tensor([[6, 14, 15, 16, 1], [7, 9, 11, 1, 0], [8, 1, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
    "labels": torch.tensor([[6, 14, 15, 16, 1], [7, 9, -100, -100, -100], [8, 1, 6, -100, -100]]),
}


@pytest.fixture(params=["t5", "llama"])
def site(request: pytest.FixtureRequest, tmp_path: Path, operator: Identity) -> Site:
    base: Path = request.getfixturevalue(f"{request.param}_base")
    return make_site(tmp_path, base, factories.make_pool(base, operator, SHORT), operator)


@pytest.fixture
def base(site: Site) -> Base:
    return load_base(str(site.base), device="cpu")


def learning(site: Site, base: Base, what: str, folder: Path) -> nn.Module:
    """A model with an expert, or with gates over one, whose trainable tensors are not at their start."""
    torch.manual_seed(1)
    modules = plan_modules(site.pool.spec, SHORT)
    expert = adapters.put_on(base, SHORT, modules)
    model: nn.Module = expert.model
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    if what == "gates":
        expert.save(folder / "adapter")
        expert.take_off()
        gated = attach_gates(base.model, folder / "adapter", modules)
        for layer in gated.values():
            nn.init.normal_(layer.gate, std=0.1)
        model = base.model
    return model.train()


def alone(model: nn.Module, row: int) -> dict[str, Tensor]:
    """The gradient of one example by itself, the slow way."""
    model.zero_grad()
    torch.autograd.backward(example_losses(model, {name: t[row : row + 1] for name, t in BATCH.items()}).sum())
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("what", ["expert", "gates"])
def test_every_example_has_the_gradient_that_it_has_alone(site: Site, base: Base, tmp_path: Path, what: str) -> None:
    model = learning(site, base, what, tmp_path)
    expected = [alone(model, row) for row in range(3)]
    model.zero_grad()
    hooks = GradSampleModule(model, loss_reduction="sum", strict=False)
    torch.autograd.backward(example_losses(model, BATCH).sum())
    found = {name: p.grad_sample for name, p in model.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]
    assert found
    for name, gradients in found.items():
        for row in range(3):
            torch.testing.assert_close(gradients[row], expected[row][name], rtol=1e-4, atol=1e-6)
    assert max(float(gradients.abs().max()) for gradients in found.values()) > 1e-3
    hooks.to_standard_module()


def a_step(model: nn.Module, folder: Path, *, noise: float, clip: float, micro_batch: int) -> dict[str, Tensor]:
    """What the optimizer is given for one draw of three examples, and for an empty one before it."""
    promise = Promise(epsilon=1, delta=1e-3, clip=clip)
    asked = TrainingRequest((), device="cpu", privacy=promise)
    arguments = _arguments(Phase("expert", folder, asked, SHORT.model_copy(update={"expert_steps": 1}), noise))
    trainer = PrivateTrainer(
        model=model, args=arguments, privacy=promise, noise=noise, batch=4, micro_batch=micro_batch,
        train_dataset=[0] * 8, eval_dataset=[0],
    )  # fmt: skip
    optimizer = trainer.create_optimizer()
    trainer.training_step(model, {})
    assert optimizer.pre_step()
    trainer.training_step(model, dict(BATCH))
    assert optimizer.pre_step()
    trainer.take_off()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_gradients_are_clipped_by_example_however_they_are_split(
    site: Site, base: Base, tmp_path: Path, micro_batch: int
) -> None:
    model, clip = learning(site, base, "expert", tmp_path), 0.05
    each = [alone(model, row) for row in range(3)]
    expected = dict.fromkeys(each[0], torch.zeros(()))
    for gradients in each:
        norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
        assert norm > clip
        for name, gradient in gradients.items():
            expected[name] = expected[name] + gradient * clip / norm / 4  # by the expected size of a batch
    found = a_step(model, tmp_path, noise=0.0, clip=clip, micro_batch=micro_batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-7)


def test_noise_is_as_wide_as_it_should_be(site: Site, base: Base, tmp_path: Path) -> None:
    model = learning(site, base, "expert", tmp_path)
    plain = a_step(model, tmp_path, noise=0.0, clip=0.5, micro_batch=4)
    blurred = a_step(model, tmp_path, noise=3.0, clip=0.5, micro_batch=4)
    noise = torch.cat([(blurred[name] - plain[name]).flatten() for name in plain])
    assert float(noise.std()) == pytest.approx(3.0 * 0.5 / 4, rel=0.1)
    assert abs(float(noise.mean())) < 0.05


@pytest.mark.parametrize(("epsilon", "rows", "steps"), [(1.0, 500, 100), (8.0, 96, 16), (3.0, 10_000, 1100)])
def test_the_budget_is_that_of_opacus_accountant(epsilon: float, rows: int, steps: int) -> None:
    promise = Promise(epsilon=epsilon, delta=1e-5)
    noise, rate = noise_for(promise, rows, 16, steps), 16 / rows
    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    assert 0.97 * epsilon < accountant.get_epsilon(promise.delta) <= epsilon


@pytest.mark.parametrize(
    ("promise", "sentence"),
    [
        (Promise(epsilon=1.0, delta=0.02), "promises nothing to 100 examples"),
        (Promise(epsilon=1e-6, delta=1e-9), "No noise makes 1000 steps"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(promise: Promise, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence) as refused:
        noise_for(promise, 100, 16, 1000)
    assert refused.value.code is Code.SETTINGS_INVALID


class StoppedError(Exception):
    pass


def test_a_private_run_resumes_and_bears_draws_of_nobody(site: Site) -> None:
    def stop(event: Progress) -> None:
        if event.step == 6:
            raise StoppedError

    seen: list[int] = []
    order = TrainingRequest((site.data,), name="it", device="cpu", overrides={"batch_size": 1}, privacy=PROMISE)
    with pytest.raises(StoppedError):
        produce(site.workspace, order, stop, NOW)
    produce(site.workspace, order, lambda event: seen.append(event.step), NOW)
    assert seen[:8] == [5, 6, 7, 8, 9, 10, 11, 12]


def test_a_private_expert_is_trained_packed_and_says_so(site: Site) -> None:
    said: list[str] = []
    order = TrainingRequest((site.data,), name="it", device="cpu", micro_batch=8, privacy=PROMISE)
    bundle = produce(site.workspace, order, lambda _: None, NOW, said.append)
    check_content(bundle.folder, site.workspace.pool_file)
    assert bundle.spec.privacy == PROMISE
    card = (bundle.folder / CARD).read_text()
    assert "epsilon 8, delta 0.001 for each example" in card
    assert "| loss on held-out examples | not told |" in card
    assert any("promise of epsilon 8" in sentence for sentence in said)
    first = load_file(bundle.folder / ADAPTER_WEIGHTS)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in first.values())
    assert all(float(gate.std()) > 0 for gate in load_file(bundle.folder / GATES).values())
    (run,) = site.workspace.runs.iterdir()
    (run / "run.json").unlink()
    for part in ("adapter", "gates.safetensors"):
        (run / part).rename(run / f"old-{part}")
    again = produce(site.workspace, order, lambda _: None, NOW)
    second = load_file(again.folder / ADAPTER_WEIGHTS)
    assert any(not torch.equal(first[name], second[name]) for name in first)  # the same seed, another noise


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (("--kind", "dora"), Code.KIND_UNSUPPORTED, "cannot be trained with differential privacy"),
        (("--kind", "ia3"), Code.KIND_UNSUPPORTED, "--kind lora or rslora"),
        (("--packing",), Code.SETTINGS_INVALID, "--packing"),
        (("--recompute",), Code.SETTINGS_INVALID, "--recompute"),
        (("--share", "means"), Code.SETTINGS_INVALID, "--share"),
        (("--joint",), Code.SETTINGS_INVALID, "--joint"),
        (("--clip", "0"), Code.SETTINGS_INVALID, "--clip"),
    ],
)
def test_what_breaks_the_promise_is_refused(
    site: Site, cli: Cli, flags: tuple[str, ...], code: Code, sentence: str
) -> None:
    status, out, err = cli(
        "train", "-w", site.workspace.root, "--data", site.data, "--epsilon", 8, "--delta", 1e-3, *flags
    )
    assert (status, out) == (code.fate.exit, "")
    assert sentence in err


def test_half_a_promise_and_a_missing_library_are_told(site: Site, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("train", "-w", site.workspace.root, "--data", site.data, "--epsilon", 8)
    assert "go together" in cli(*command)[2]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    status, _, err = cli(*command, "--delta", 1e-3)
    assert status == Code.SETTINGS_INVALID.fate.exit
    assert "pip install 'greylag[private]'" in err
    monkeypatch.setenv("GREYLAG_CLIENT_SHARE_EPSILON", "4")
    _, _, err = cli("train", "-w", site.workspace.root, "--data", site.data, "--share", "means")
    assert "Noise on means needs dp-accounting, which is not installed." in err


def test_private_and_plain_training_share_their_trainer() -> None:
    assert issubclass(PrivateTrainer, PhaseTrainer)
