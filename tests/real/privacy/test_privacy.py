"""An attack finds what was planted, and nothing where there is nothing; and all of it on experts that were trained."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.errors import Refused
from protocol.signing import Identity
from protocol.spec import Means, Statistics
from router.base.batching import TokenPair, encode_pairs
from router.base.loading import load_base
from router.methods.features.covariance import spread_of
from router.model.routed_model import RoutedModel
from router.pool.expert import Expert
from tests.factories import make_bundle, make_llama, make_pool
from tests.real.bench import __main__ as bench
from tests.real.bench.contributors import Contributor
from tests.real.bench.test_bench import _rows, out  # noqa: F401 - a fixture
from tests.real.privacy import __main__ as privacy
from tests.real.privacy import attacks, reading, run
from tests.real.privacy.auc import ALL, Area, Two, area, by_kind
from tests.real.privacy.found import Found, markdown

WIDTH, ROWS = 64, 40
RNG = np.random.default_rng(0)


def test_an_area_is_the_chance_to_be_above() -> None:
    own, others = RNG.integers(5, size=40).astype(float), RNG.integers(4, size=30).astype(float)
    slow = np.mean([(a > b) + 0.5 * (a == b) for a in own for b in others])
    found = area([Two(own, others)])
    assert found is not None
    assert found.mean == pytest.approx(slow)
    assert found.low < slow < found.high
    assert area([Two(others + 10, others)]) == pytest.approx((1, 1, 1))
    assert area([Two(own, others[:0])]) is None


def test_an_interval_is_as_wide_as_theory_has_it_and_narrower_over_several_experts() -> None:
    groups = [Two(RNG.normal(size=100), RNG.normal(size=100)) for _ in range(16)]
    one, many = area(groups[:1]), area(groups)
    assert one is not None
    assert many is not None
    # The standard error of a guess is sqrt((n + m + 1) / (12 n m)).
    assert one.high - one.low == pytest.approx(2 * 1.96 * (201 / 120_000) ** 0.5, rel=0.2)
    assert many.high - many.low == pytest.approx((one.high - one.low) / 4, rel=0.25)
    assert many.low < 0.5 < many.high


def test_modules_are_joined_in_units_of_their_spread() -> None:
    scores = {"a": np.array([0.0, 2.0]), "b": np.array([1000.0, 0.0]), "c": np.array([5.0, 5.0])}
    joined = by_kind(scores, {"a": "x", "b": "x", "c": "y"})
    assert joined["x"].tolist() == [0, 0]
    assert joined["y"].tolist() == [0, 0]
    assert set(joined) == {"x", "y", ALL}


def _rows_drawn(count: int, seed: int) -> Tensor:
    """Rows whose directions vary by very different amounts, as activations do."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=draw) * torch.logspace(0, -2, WIDTH) + 3


@pytest.mark.parametrize("metric", attacks.METRICS)
def test_a_mean_gives_its_rows_away_to_who_knows_others_and_no_other_rows(metric: str) -> None:
    ground = spread_of(_rows_drawn(10 * ROWS, 0))
    draw, its_own, others, noise = torch.Generator().manual_seed(0), list[Two](), list[Two](), list[Two]()
    for seed in range(1, 13):
        members, strangers = _rows_drawn(ROWS, seed), _rows_drawn(4 * ROWS, -seed)
        own = members.mean(0)
        for mean, into in (
            (own, its_own),
            (_rows_drawn(ROWS, 100 + seed).mean(0), others),
            (attacks.noisy(own, torch.zeros(WIDTH), 10.0, draw), noise),
        ):
            scores = attacks.products(torch.cat([members, strangers]), mean - ground.mean, ground, metric)
            into.append(Two(scores[:ROWS], scores[ROWS:]))
    found = area(its_own)
    assert found is not None
    assert found.low > (0.7 if metric == "whitened" else 0.6)
    for each in (others, noise):
        guess = area(each)
        assert guess is not None
        assert guess.mean == pytest.approx(0.5, abs=0.06)
        assert guess.high < found.low


def test_noise_is_of_the_size_that_was_asked_for() -> None:
    told, ground = torch.full((10_000,), 3.0), torch.ones(10_000)
    noise = attacks.noisy(told, ground, 0.5, torch.Generator().manual_seed(0)) - told
    assert float(noise.norm()) == pytest.approx(0.5 * float((told - ground).norm()), rel=0.05)
    assert torch.equal(attacks.noisy(told, ground, 0.0, torch.Generator()), told)


def test_a_word_that_is_written_in_a_vector_is_read_through_the_lens(tmp_path: Path) -> None:
    base = load_base(str(make_llama(tmp_path / "base")), device="cpu")
    tokens = [[at] for at in range(4, 30)]
    lens, model = attacks.Lens(base, tokens), base.model
    norm = model.get_submodule("model.layers.1.input_layernorm").weight
    own = model.get_output_embeddings().weight[11].detach()
    entered = own * norm.detach()
    assert lens.scores("model.layers.1.self_attn.k_proj", entered, "unembedding").argmax() == 7
    embedded = (model.get_input_embeddings().weight[11] * norm).detach()
    assert lens.scores("model.layers.1.self_attn.k_proj", embedded, "embedding").argmax() == 7
    # What enters o is written through its weight.
    weight = model.get_submodule("model.layers.1.self_attn.o_proj").weight.detach()
    before = torch.linalg.lstsq(weight, own.unsqueeze(1)).solution[:, 0]
    assert lens.scores("model.layers.1.self_attn.o_proj", before, "unembedding").argmax() == 7


def test_rare_words_stand_in_few_rows_and_in_no_others() -> None:
    texts = ["the Lisbon tram", "the Porto tram", "the tram of Porto", "a bus"]
    assert attacks.rare(texts, ["no BUS here"]) == ["Lisbon", "Porto"]
    assert [word for word in attacks.words_of(texts) if attacks.is_name(word)] == ["Lisbon", "Porto"]


def test_kinds_are_named_by_who_reads_one_input() -> None:
    assert attacks.kind("model.layers.3.self_attn.v_proj") == "q, k, v"
    assert attacks.kind("model.layers.3.mlp.down_proj") == "down"


def test_tables_leave_cells_empty_that_nobody_fills() -> None:
    found = Found()
    found.put("Rows", ("loss",), ALL, Two(np.array([2.0]), np.array([1.0])))
    found.add("Rows", ("mean", "plain"), {"a.mlp.down_proj": np.array([1.0, 1.0])}, 1)
    page = markdown(found.areas())
    assert "| | all | down |" in page
    assert "| loss | 1.00 (1.00 to 1.00) |  |" in page
    assert "| mean, plain | 0.50 (0.50 to 0.50) | 0.50 (0.50 to 0.50) |" in page


OWN, ABSENT = ("reverse", "copy", "now"), ("rotate", "cipher", "say")


def _words_told(folder: Path, experts: int, *, planted: bool) -> dict[str, Area]:
    """Attack words of experts whose means tell their own words, or nothing."""
    base, identity = make_llama(folder / "base"), Identity.generate()
    pool, told = make_pool(base, identity), Statistics(means=Means())
    bundles = [
        make_bundle(folder / f"{at}", pool, identity, name=f"e{at}", seed=at, statistics=told) for at in range(experts)
    ]
    model = RoutedModel.from_bundles(str(base), bundles, device="cpu")
    own, other = (
        [
            encode_pairs(model.base, [f"{word} a b", f"{letters} :"], ["a", "b"])
            for word, letters in zip(words, ("c d", "e f", "g h"), strict=True)
        ]
        for words in (OWN, ABSENT)
    )
    mine, fresh = ([pair for pairs in each for pair in pairs] for each in (own, other))
    sides = reading.Sides("e", mine, mine, mine, fresh[:2], fresh[2:])
    found, cases, draw = Found(), [], torch.Generator().manual_seed(0)
    alone = reading.seen(model, [pair.input for pair in encode_pairs(model.base, [*OWN, *ABSENT], ["a"] * 6)])
    for expert in model.generation.pool.experts:
        case = run.Case(expert, sides, reading.seen(model, sides.read))
        apart = {
            path: each[:3].mean(0) - each.mean(0) if planted else torch.randn(each.shape[1], generator=draw)
            for path, each in alone.items()
        }
        means = {path: case.ground(path).mean + each for path, each in apart.items()}
        cases.append(replace(case, expert=replace(expert, means=means)))
    run.by_words(found, model, cases, {path: case.ground(path) for path in cases[0].rows})
    return {", ".join(label): row[ALL] for label, row in found.areas()[run.SINGLE].items()}


def test_words_are_found_where_a_mean_tells_them_and_not_in_noise(tmp_path: Path) -> None:
    told = _words_told(tmp_path / "planted", 2, planted=True)
    assert told["mean, read alone, plain"].mean == pytest.approx(1)
    noise = _words_told(tmp_path / "noise", 30, planted=False)
    for row in ("mean, read alone, plain", "gate, read alone, plain", "gate, unembedding", "gate, embedding"):
        assert noise[row].mean == pytest.approx(0.5, abs=0.14)  # three standard errors


def test_strangers_go_to_their_own_expert_until_noise_hides_it() -> None:
    draw, pair = torch.Generator().manual_seed(0), TokenPair([1], [1])
    public = {"m": spread_of(torch.randn(400, 16, generator=draw))}
    cases = []
    for at in range(4):
        centre = 3 * torch.eye(4, 16)[at]
        rows = {"m": centre + torch.randn(60, 16, generator=draw)}
        sides = reading.Sides(f"e{at}", [], [], [pair] * 10, [pair] * 50, [])
        cases.append(run.Case(Expert(f"d{at}", f"e{at}", "", {}, means={"m": centre}), sides, rows))
    plain, hidden = (run.routing(cases, public, size) for size in (0.0, 100.0))
    assert min(plain) > 90
    assert 5 < hidden.own < 60
    # Noise makes means long, and shares of what is not noise small.
    assert hidden.familiar < 10


@pytest.mark.slow
def test_experts_that_were_trained_are_attacked(
    out: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = str(make_llama(tmp_path / "base"))
    asked = ["--base", base, "--layers", "1-1", "--size", "smoke", "--steps", "8", "--out", str(out)]
    bench.main([*asked, "--workers", "1", "--no-oracle", "--methods", "phatgoose"])
    capsys.readouterr()
    monkeypatch.setattr(reading, "training", lambda each, *_: _rows(each.task, 0, 400))
    (pool,), (suite,) = out.glob("pool-*"), out.glob("suite-*.json")
    page = tmp_path / "page.md"
    privacy.main([
        "--pool", str(pool), "--suite", str(suite), "--experts", "copy", "say", "--base", base, "--rows", "40",
        "--reference", "80", "--public", "20", "--out", str(page),
    ])  # fmt: skip
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = told["areas"][run.ROWS]
    assert rows["mean, noise 0, other rows of the task known, whitened"][ALL][1] > 0.5
    assert {"q, k, v", "o", "gate, up", "down"} < set(rows["gate, other rows of the task known, plain"])
    assert set(told["routed"]) == {f"{size}" for size in run.NOISE}
    assert all(0 <= low <= mean <= high <= 1 for row in rows.values() for mean, low, high in row.values())
    assert page.read_text().count("\n## ") >= 2

    monkeypatch.setattr(reading, "training", lambda each, *_: _rows(each.task, 0, 90))
    with pytest.raises(Refused, match="that its contributor lacks"):
        reading.sides(
            RoutedModel.from_base(base, device="cpu").base, pool / "0" / "copy", Contributor("copy", "copy"), 0, 40, 80
        )


def test_strangers_are_rows_that_nobody_here_knows(tmp_path: Path) -> None:
    model = RoutedModel.from_base(str(make_llama(tmp_path / "base")), device="cpu")
    known = {tuple(pair.input) for pair in reading.fresh_rows(model.base, _rows("copy", 0, 60), set())}
    fresh = reading.fresh_rows(model.base, _rows("copy", 0, 100), known)
    assert 20 < len(fresh) <= 40
    assert not known & {tuple(pair.input) for pair in fresh}
