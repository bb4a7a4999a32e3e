"""Means with noise: as much as the budget asks for, and no more."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dp_accounting import get_sigma_gaussian
from opacus.accountants import PRVAccountant
from safetensors.torch import load_file
from torch import Tensor

from client.job import produce
from client.runs.consent import Share
from client.training import private_means
from client.training.plan import TrainingRequest
from client.workspace.paths import ClientWorkspace
from protocol.bundle import CARD, GATES, open_bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.spec import Noise
from router.base.linear import linear_modules
from router.base.loading import load_base
from router.base.module_paths import deeper, reads_input
from router.methods.features.mixture import RIDGE
from router.model.routed_model import RoutedModel
from tests.client.conftest import NOW, Site
from tests.client.runs.test_consent import site

__all__ = ["site"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")  # opacus takes the logarithm of 0
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("delta", [1e-8, 1e-5, 1e-2])
def test_an_accountant_finds_the_same_budget(epsilon: float, delta: float) -> None:
    scale = get_sigma_gaussian(epsilon, delta)
    found = []
    for less in (1.0, 0.95):
        accountant = PRVAccountant()
        accountant.step(noise_multiplier=scale * less, sample_rate=1.0)
        found.append(accountant.get_epsilon(delta, eps_error=0.01))
    assert epsilon <= found[0] <= epsilon + 0.03  # its figure is an upper bound
    assert found[1] > epsilon + 0.015


@pytest.mark.parametrize(("rows", "told"), [(1, 1), (4, 2), (99, 50), (100, 100), (760, 500), (4999, 2000)])
def test_a_number_of_rows_is_told_roughly(rows: int, told: int) -> None:
    assert private_means.counted(rows) == told


def batch(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.full_like(ids, -100)}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.methods.features.background.TEXTS", 80)


def test_one_row_moves_the_mean_as_far_as_noise_reckons_with(
    llama_base: Path, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(llama_base), device="cpu")
    paths = list(linear_modules(base.model))
    model = RoutedModel(base)
    draw = random.Random(0)
    rows = [[draw.randrange(4, 40) for _ in range(draw.randint(2, 9))] for _ in range(10)]
    scales: list[float] = []

    def still(size: int, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        scales.append(size)
        return torch.zeros(size, dtype=dtype)

    monkeypatch.setattr("client.training.private_means.torch.randn", still)
    noise = Noise(epsilon=8.0, delta=1e-5, rows=10)

    def whitened(some: list[list[int]]) -> Tensor:
        found = private_means.means(model, paths, [batch(some[:6]), batch(some[6:])], noise)
        reader, public = model.features.mixtures.reader, model.features.mixtures.public
        sources = list(dict.fromkeys(reader.sources.values()))
        for path in paths:
            assert torch.equal(found[path], found[reader.sources[path]])
        spreads = [public.spread(path, "pooled") for path in sources]
        return torch.cat([
            spread.raised((found[path] - spread.mean).unsqueeze(0), RIDGE, -0.5)[0]
            / math.sqrt(len(spread.mean) * len(sources))
            for path, spread in zip(sources, spreads, strict=True)
        ])  # fmt: skip

    before = whitened(rows)
    for _ in range(20):
        changed = list(rows)
        changed[draw.randrange(10)] = [draw.randrange(4, 40)] * draw.randint(1, 12)
        moved = float((whitened(changed) - before).norm())
        assert 0 < moved <= 2 * private_means.CLIP / 10 * 1.001
    assert float(before.norm()) <= private_means.CLIP
    assert scales[0] == len(before)


def test_noise_is_as_large_as_it_must_be_and_never_twice_the_same(llama_base: Path, quiet: None) -> None:
    base = load_base(str(llama_base), device="cpu")
    model, path = RoutedModel(base), "model.layers.1.mlp.down_proj"
    noise = Noise(epsilon=1.0, delta=1e-5, rows=4)
    rows = [batch([[5, 6, 7], [8, 9], [10], [11, 12]])]
    spread = model.features.mixtures.public.spread(path, "pooled")
    found = torch.stack([private_means.means(model, [path], rows, noise)[path] for _ in range(60)])
    assert len({tuple(row) for row in found.tolist()}) == 60
    flat = spread.raised(found - found.mean(0), RIDGE, -0.5) / math.sqrt(len(spread.mean))
    expected = 2 * private_means.CLIP / 4 * get_sigma_gaussian(1.0, 1e-5)
    assert float(flat.std()) == pytest.approx(expected, rel=0.1)


def pool_of(site: Site) -> Pool:
    return site.workspace.pool


def test_a_contributor_may_ask_for_noise_and_the_bundle_says_so(site: Site, quiet: None) -> None:
    workspace = ClientWorkspace(site.workspace.root, share_epsilon=4.0)
    order = TrainingRequest((site.data,), name="reverse", device="cpu", share=(Share.MEANS,))
    bundle = produce(workspace, order, lambda _: None, NOW)
    means = bundle.spec.statistics.means
    assert means is not None
    assert means.noise is not None
    assert (means.noise.epsilon, means.noise.delta) == (4.0, 1e-5)
    assert "with noise (epsilon 4, delta 1e-05)" in (bundle.folder / CARD).read_text()
    causal = pool_of(site).spec.architecture == "decoder-only"
    seeing = [path for path in deeper(bundle.spec.modules) if causal or reads_input(path)]
    assert sorted(means.modules or ()) == sorted(seeing)
    noisy = load_file(bundle.folder / GATES)
    assert {name for name in noisy if name.endswith(".mean")} == {f"{path}.mean" for path in seeing}
    plain = produce(site.workspace, order, lambda _: None, NOW)
    exact = load_file(plain.folder / GATES)
    told = plain.spec.statistics.means
    assert told is not None
    assert told.noise is None
    assert sorted(told.modules or ()) == sorted(deeper(plain.spec.modules))
    assert not torch.equal(noisy[f"{seeing[0]}.mean"], exact[f"{seeing[0]}.mean"])
    assert open_bundle(plain.folder).digest == plain.digest


def test_a_pool_may_ask_for_means_and_nobody_is_made_to_tell(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(site)
    asking = pool.spec.policy.model_copy(update={"statistics": ("means",)})
    asked = replace(pool, spec=pool.spec.model_copy(update={"policy": asking}))
    monkeypatch.setattr(site.workspace, "pool", asked)
    for share in ((), (Share.CENTROID,)):
        with pytest.raises(Refused, match="--share means") as refused:
            produce(site.workspace, TrainingRequest((site.data,), share=share), lambda _: None, NOW)
        assert refused.value.code is Code.STATISTICS_MISSING


def test_the_deeper_half_is_that_of_every_stack() -> None:
    layers = [*(f"encoder.block.{at}.q" for at in range(3)), *(f"h.{at}.wo" for at in range(4)), "lone.0.k"]
    assert deeper(layers) == ["encoder.block.1.q", "encoder.block.2.q", "h.2.wo", "h.3.wo", "lone.0.k"]
