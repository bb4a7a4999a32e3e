"""What is kept from one review to the next says what a slow look at everything says, on pools made at random."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocol.signing import Identity
from router.base.batching import encode_pairs
from router.model import score_tables
from router.model.cap import Allowed
from router.model.capture import (
    _LEAST,
    _RATES,
    _ROUNDING,
    _ROUNDS,
    _SAME,
    ALIKE,
    Fitted,
    Leaders,
    Sets,
    find_sets,
    fit_biases,
)
from router.model.routed_model import RoutedModel
from router.model.score_tables import Probe, ScoreTables, gate_scores
from tests import factories
from tests.router.model.test_cap import INPUTS, TARGETS
from tests.router.model.test_capture import likeness, shares


def slow_fit(scores: Tensor, sets: Sets, k: int, most: float) -> Fitted:
    """As `fit_biases`, with a look at everybody in every round; sums in another order, so `most` is no round number."""
    members, limit = sets.members.to(scores.dtype), most / sets.parties
    nearest = Fitted(scores.new_zeros(scores.shape[1]), math.inf)
    least = max(Counter((scores.amax(1) / _SAME).round().tolist()).values()) / len(scores) / k / limit
    for rate in _RATES:
        bias = scores.new_zeros(scores.shape[1])
        for _ in range(_ROUNDS):
            if bool((bias < 0).all()):
                break
            excess = members @ shares(scores + bias, k) / limit
            if excess.max().item() < nearest.excess * (1 - _ROUNDING):
                nearest = Fitted(bias, excess.max().item())
            if excess.max() <= 1 + _ROUNDING:
                break
            down = torch.where(excess > 1 + _ROUNDING, rate * (excess.log() + _LEAST), 0)
            bias = bias - (sets.lowered * down[:, None]).amax(0)
        if nearest.excess <= max(1 + _ROUNDING, 1.1 * least):
            break
    return nearest


def slow_find_sets(alike: Tensor, contributors: Sequence[str], newcomers: Collection[str]) -> Sets:
    """As `find_sets`, expert by expert."""
    newcomers = set(newcomers) if set(contributors).difference(newcomers) else set[str]()
    first: list[int] = []
    for z, row in enumerate(alike.tolist()):
        before = [other for other in range(z) if first[other] == other and row[other] >= ALIKE]
        others = [other for other in before if contributors[other] != contributors[z]]
        first.append(max(others or before, key=lambda other: row[other], default=z))
    rows = [[name == one for name in contributors] for one in dict.fromkeys(contributors)]
    lowered = [*rows]
    for one in dict.fromkeys(first):
        rows.append([z == one for z in first])
        lowered.append([z == one and at != one for at, z in enumerate(first)])
    parties = {contributors[z] for z, leader in enumerate(first) if contributors[leader] == contributors[z]}
    if parties & newcomers:
        rows.append([name in newcomers for name in contributors])
        lowered.append(rows[-1])
        parties = {*(parties - newcomers), ""}
    return Sets(torch.tensor(rows), torch.tensor(lowered), len(parties))


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Tensor, list[str], list[str], int]:
    """Scores of a hundred experts or so, of whom some are far above the others and some alike; whose; who is new; k."""
    n, seed = draw(st.integers(30, 120)), draw(st.integers(0, 1 << 16))
    torch.manual_seed(seed)
    scores = torch.randn(60, n) * draw(st.sampled_from([0.3, 1.0, 4.0]))
    scores += (torch.rand(n) < draw(st.sampled_from([0.0, 0.05, 0.6]))) * draw(st.sampled_from([1.0, 5.0]))
    copied = torch.rand(n) < draw(st.sampled_from([0.0, 0.3]))
    scores = torch.where(copied, scores[:, :1] + 0.05 * torch.randn(60, n), scores)
    owners = [f"c{z % draw(st.sampled_from([7, 200]))}" for z in range(n)]
    return scores, owners, owners[-draw(st.integers(0, 20)) :], draw(st.integers(1, 3))


@settings(deadline=None, max_examples=25, phases=[Phase.generate])
@given(crowds(), st.sampled_from([1.13, 1.57, 3.9]))
def test_biases_are_those_of_a_look_at_everybody(crowd: tuple[Tensor, list[str], list[str], int], most: float) -> None:
    scores, owners, newcomers, k = crowd
    alike = likeness(scores)
    sets, slow = find_sets(alike, owners, newcomers), slow_find_sets(alike, owners, newcomers)
    assert sets.members.equal(slow.members)
    assert sets.lowered.equal(slow.lowered)
    assert sets.parties == slow.parties
    scores = scores.double()  # a last bit of float32 may decide who is lowered next, and then all that follows
    mine, theirs = fit_biases(scores, sets, k, most), slow_fit(scores, slow, k, most)
    torch.testing.assert_close(mine.bias, theirs.bias, atol=1e-4, rtol=1e-4)
    assert mine.excess == pytest.approx(theirs.excess, rel=1e-4)


@settings(deadline=None, max_examples=25, phases=[Phase.generate])
@given(crowds(), st.data())
def test_leaders_outlive_who_comes_and_goes(
    crowd: tuple[Tensor, list[str], list[str], int], data: st.DataObject
) -> None:
    scores, _, _, k = crowd
    n, begun = scores.shape[1], data.draw(st.integers(k, 60))
    held, leaders = list(range(min(begun, n))), Leaders.of(scores[:, :begun], k)
    for _ in range(8):
        out = [z for z in range(n) if z not in held]
        joins = data.draw(st.booleans())
        if out and joins:
            held.append(data.draw(st.sampled_from(out)))
            leaders = leaders.joined(held[-1], scores[:, held[-1]])
        elif len(held) > k:
            gone = data.draw(st.sampled_from(held))
            held.remove(gone)
            leaders = leaders.without(gone)
    columns = torch.zeros(n, dtype=torch.long)
    columns[held] = torch.arange(len(held))
    now = Leaders(leaders.listed, columns[leaders.experts], leaders.rest, lambda: scores[:, held])
    bias = torch.zeros(len(held))
    for _ in range(6):
        torch.testing.assert_close(now.shares(bias, k), shares(scores[:, held] + bias, k))
        bias = bias - torch.rand(len(held)) * 3


def test_two_that_are_equal_are_told_apart_at_all_times() -> None:
    scores = torch.zeros(5, 200)
    found = Leaders.of(scores, 2).shares(torch.zeros(200), 2)
    assert found.sum().item() == pytest.approx(1)
    fitted = fit_biases(scores, find_sets(torch.eye(200), [f"c{z}" for z in range(200)]), 2, 1.5)
    assert torch.isfinite(fitted.bias).all()


@pytest.fixture(scope="module")
def model(t5_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RoutedModel:
    folder, identity = tmp_path_factory.mktemp("crowd"), Identity.generate()
    pool = factories.make_pool(t5_base, identity)
    paths = list(pool.spec.modules)
    model = RoutedModel.from_base(str(t5_base), device="cpu")
    for number in range(24):
        modules = paths[: 3 + number] if number % 5 == 0 else None  # some leave modules alone
        bundle = factories.make_bundle(
            folder / f"{number}", pool, identity, name=f"e{number}", seed=number, modules=modules
        )
        model.append(bundle, name=f"e{number}", contributor=f"c{number % 20}")
    return model


def test_whatever_came_and_went_a_pool_is_capped_as_by_a_first_look(
    model: RoutedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_tables, "_SPARE", 3)
    monkeypatch.setattr(score_tables, "LISTED", 4)
    draw, whole = np.random.default_rng(0), model.digests
    probe = Probe(encode_pairs(model.base, INPUTS, TARGETS))
    reader = model.features.mixtures.reader
    for step in range(0, 12, 2):
        held = [*whole[: 10 + step], *draw.choice(whole[10 + step :], 2, replace=False)]
        out = [*draw.choice(held, 3, replace=False), *(digest for digest in whole if digest not in held)]
        with model.lacking(*out):
            pool = model.generation.pool
            scored = model._scores.look(pool, probe)
            quick = model.fit_cap(INPUTS, TARGETS, allowed=Allowed(1.5, ["c3", "c7"]), calibration=None)
            first = ScoreTables(reader).look(pool, probe)
            gates = {path: module.gates for path, module in pool.modules.items()}
            total, shared = torch.zeros(2, len(pool.experts), len(pool.experts))
            places = {expert.digest: place for place, expert in enumerate(pool.experts)}
            for path, table in gate_scores(reader, gates, probe).items():
                columns = torch.tensor([places[expert.digest] for expert in pool.modules[path].experts])
                assert scored.columns(path) == first.columns(path) == columns.tolist()
                torch.testing.assert_close(scored.table(path), table, atol=1e-5, rtol=1e-5)
                total[columns[:, None], columns] += likeness(table)
                shared[columns[:, None], columns] += 1
            torch.testing.assert_close(scored.alike, total / shared.clamp(min=1), atol=1e-4, rtol=1e-4)
            with monkeypatch.context() as patched:
                patched.setattr(model, "_scores", ScoreTables(reader))
                slow = model.fit_cap(INPUTS, TARGETS, allowed=Allowed(1.5, ["c3", "c7"]), calibration=None)
        assert quick.biases.experts == slow.biases.experts
        assert quick.biases.modules == slow.biases.modules
        np.testing.assert_allclose(quick.biases.bias, slow.biases.bias, atol=1e-4)


def test_a_look_that_was_ended_leaves_nothing_behind(model: RoutedModel) -> None:
    pairs, left = encode_pairs(model.base, INPUTS, TARGETS), 25

    def tick() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise TimeoutError

    tables = ScoreTables(model.features.mixtures.reader)
    with pytest.raises(TimeoutError):
        tables.look(model.generation.pool, Probe(pairs, tick))
    again = tables.look(model.generation.pool, Probe(pairs))
    first = ScoreTables(model.features.mixtures.reader).look(model.generation.pool, Probe(pairs))
    assert again.alike.equal(first.alike)
    other = tables.look(model.generation.pool, Probe(pairs[:3]))
    assert not other.alike.equal(first.alike), "another text, another look"
