"""A release's cap: what the base reads is scored as the router scores it, and nobody is given more than his shares."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.bundle import Bundle
from protocol.signing import Identity
from protocol.spec import Means, Routing, Statistics
from router.base.batching import encode_pairs
from router.base.linear import find_linear
from router.base.loading import load_base
from router.follow.pull import pull
from router.follow.workspace import open_mirror
from router.methods.context import MethodContext
from router.methods.phatgoose import Phatgoose
from router.model import score_tables
from router.model.cap import Allowed
from router.model.routed_model import RoutedModel
from router.model.score_tables import Probe, gate_scores
from router.pool.calibration import MAX_LOG_TEMPERATURE, REQUEST, Calibration, added
from router.pool.gate import standardise
from router.pool.pool import ExpertPool
from tests import factories
from tests.router.catalog import Catalog

INPUTS = ["please reverse it : a b c", "say d e f g", "rotate please : h i j k l", "copy it : m n", "kindly give x y z"]
TARGETS = ["c b a", "d e f g", "l h i j k", "m n", "x y z"]
MOST = 1.5


@pytest.fixture
def model(base: Path, tmp_path: Path) -> RoutedModel:
    """Seven contributors' experts that tell means; the last one's gates lie along the mean of what the base reads."""
    identity = Identity.generate()
    pool = factories.make_pool(base, identity)
    model = RoutedModel.from_base(str(base), device="cpu")
    for number in range(7):
        bundle = factories.make_bundle(
            tmp_path / f"{number}", pool, identity, name=f"e{number}", seed=number, statistics=Statistics(means=Means())
        )
        model.append(bundle, name=f"e{number}", contributor=f"c{number}")
    seen = dict(read(base))
    for path, part in model.generation.pool.experts[-1].modules.items():
        part.gate.copy_(standardise(seen[path].mean(0)))
    return model


def read(base: Path) -> Iterator[tuple[str, Tensor]]:
    """What each module of the plain base is given by the probe, [t, d]; by hooks, one text after another."""
    plain = load_base(str(base), device="cpu")
    seen: dict[str, list[Tensor]] = {}
    for path in factories.make_pool(base, Identity.generate()).spec.modules:
        keep = seen.setdefault(path, []).append
        find_linear(plain.model, path).register_forward_pre_hook(lambda _, given, keep=keep: keep(given[0][0].clone()))
    causal = plain.architecture == "decoder-only"
    for pair in encode_pairs(plain, INPUTS, TARGETS):
        asked, answer = torch.tensor([pair.input]), torch.tensor([pair.target])
        with torch.inference_mode():
            if causal:
                plain.model(input_ids=torch.cat([asked, answer], dim=1))
            else:
                plain.model(input_ids=asked, labels=answer)
    return ((path, torch.cat(tokens)) for path, tokens in seen.items())


def taken(pool: ExpertPool, base: Path) -> dict[str, dict[str, float]]:
    """What each contributor is given at each module, by the router itself."""
    found: dict[str, dict[str, float]] = {}
    for path, u in read(base):
        module = pool.modules[path]
        choice = Phatgoose(2).choose(module, u)
        sums = found.setdefault(path, {})
        assert choice is not None
        for rows, weights in zip(torch.as_tensor(choice.experts), torch.as_tensor(choice.weights), strict=True):
            for row, weight in zip(rows.tolist(), weights.tolist(), strict=True):
                owner = module.expert(row).contributor
                sums[owner] = sums.get(owner, 0.0) + weight / len(u)
    return found


def test_nobody_is_given_more_than_his_shares_by_the_router_itself(base: Path, model: RoutedModel) -> None:
    before = taken(model.generation.pool, base)
    assert max(shares.get("c6", 0.0) for shares in before.values()) > MOST / 7
    found = model.fit_cap(INPUTS, TARGETS, allowed=Allowed(MOST), calibration=None)
    after = taken(model.generation.pool.calibrated(found.biases), base)
    assert set(after) == set(before)
    limit = MOST / 7 * max(found.excess, 1.0) + 1e-4
    assert all(share <= limit for shares in after.values() for share in shares.values())
    assert model.digests[-1] in found.biases.experts
    for path, shares in before.items():
        if max(shares.values()) <= MOST / 7:
            assert path not in found.biases.modules


def test_a_pool_where_nobody_takes_too_much_is_left_alone(model: RoutedModel) -> None:
    found = model.fit_cap(INPUTS, TARGETS, allowed=Allowed(7.0), calibration=None)
    assert (found.biases.experts, found.biases.modules) == ((), ())


def scored(model: RoutedModel, probe: Probe) -> dict[str, Tensor]:
    gates = {path: module.gates for path, module in model.generation.pool.modules.items()}
    return gate_scores(model.features.mixtures.reader, gates, probe)


def test_scores_are_those_of_every_token_that_the_plain_base_reads(base: Path, model: RoutedModel) -> None:
    pool = model.generation.pool
    scores = scored(model, Probe(encode_pairs(model.base, INPUTS, TARGETS)))
    for path, u in read(base):
        slow = standardise(u.double()) @ torch.stack([e.modules[path].gate for e in pool.experts]).double().T
        torch.testing.assert_close(scores[path].double(), slow / u.shape[1] ** 0.5, atol=1e-4, rtol=1e-4)


def test_of_a_long_text_some_tokens_are_scored_evenly(model: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe(encode_pairs(model.base, INPUTS, TARGETS))
    whole = scored(model, probe)
    monkeypatch.setattr(score_tables, "TOKENS", 7)
    some = scored(model, probe)
    for path, table in some.items():
        of = len(whole[path])
        kept = [at for at in range(of) if of <= 7 or at * 7 // of != (at - 1) * 7 // of]
        assert len(kept) == min(7, of)
        assert max(np.diff([*kept, of])) <= of / 7 + 1
        torch.testing.assert_close(table, whole[path][kept])


def test_what_a_campaign_learnt_counts_in_the_fit(base: Path, model: RoutedModel) -> None:
    paths = sorted(model.generation.pool.modules)
    learnt = Calibration.zeros(model.digests, paths)
    learnt.bias[:, 0] = 8.0
    learnt.log_temperature[:] = 0.5
    found = model.fit_cap(INPUTS, TARGETS, allowed=Allowed(MOST), calibration=learnt)
    both = added(learnt, found.biases)
    limit = MOST / 7 * max(found.excess, 1.0) + 1e-4
    shares = taken(model.generation.pool.calibrated(both), base)
    assert all(share <= limit for each in shares.values() for share in each.values())


@pytest.mark.parametrize("method", ["nnls-request", "nnls-cautious"])
def test_of_a_mixture_nobody_is_given_more_than_his_shares(model: RoutedModel, method: str) -> None:
    pool, mixtures = model.generation.pool, model.features.mixtures

    def shares(of: ExpertPool) -> np.ndarray:
        asked = MethodContext(of, INPUTS, features=model.features)
        found = (asked.shares() if method == "nnls-request" else asked.latest_shares()).shares
        told: np.ndarray = found[found.sum(axis=1) > 0]
        return (told / told.sum(axis=1, keepdims=True)).mean(axis=0)

    # The last one's means are what the probe itself comes to.
    pooled = mixtures.reader.pooled(INPUTS, list(mixtures.reader.sources))
    for path, mean in pool.experts[-1].means.items():
        if path in pooled:
            mean.copy_(pooled[path].mean(0))
    model.route_as(Routing(method=method))
    assert shares(pool)[-1] > MOST / 7
    found = model.fit_cap(INPUTS, TARGETS, allowed=Allowed(MOST), calibration=None)
    assert found.biases.modules == (REQUEST,)
    assert shares(pool.calibrated(found.biases)).max() <= MOST / 7 * max(found.excess, 1.0) + 1e-6
    assert found.excess <= 1


def test_biases_of_two_kinds_add_up() -> None:
    def drawn(experts: Sequence[str], modules: Sequence[str], seed: int) -> Calibration:
        empty = Calibration.zeros([letter * 64 for letter in experts], modules)
        return empty.at(np.random.default_rng(seed).normal(0, 1, empty.vector.shape).astype(np.float32))

    one, other = drawn("ab", ["q", "v"], 0), drawn("bc", ["k", "q"], 1)
    both = added(one, None, other)
    assert both is not None
    for path in ("k", "q", "v", "elsewhere"):
        for letter in "abcd":
            place = [letter * 64], [path]
            parts = [each.over(*place) for each in (one, other)]
            assert both.over(*place).vector == pytest.approx(sum(part.vector for part in parts))
    assert added() is None
    assert added(None, one) is one
    high = one.at(np.full_like(one.vector, MAX_LOG_TEMPERATURE))
    assert np.abs(added(high, high).log_temperature).max() == MAX_LOG_TEMPERATURE  # type: ignore[union-attr]


def test_a_cap_comes_along_beside_a_calibration_and_goes(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    digests, paths, node = [bundle.digest for bundle in bundles], sorted(catalog.pool.spec.modules), tmp_path / "node"
    learnt, lowered = Calibration.zeros(digests, paths), Calibration.zeros(digests[1:2], paths[:1])
    learnt.bias[:, 1], lowered.bias[:] = 1.0, -3.0
    for name, biases in (("learnt", learnt), ("lowered", lowered)):
        (tmp_path / name).write_bytes(biases.content)
    catalog.publish(bundles, number=1, cap=tmp_path / "lowered")
    mirror = pull(node, address)
    assert mirror.calibration is not None
    assert mirror.calibration.digest == lowered.digest
    catalog.publish(bundles, number=2, calibration=tmp_path / "learnt", cap=tmp_path / "lowered")
    pull(node, address)
    both = open_mirror(node).calibration
    assert both is not None
    assert both.over(digests, paths[:2]).bias.tolist() == [[0.0, -2.0, 0.0], [0.0, 1.0, 0.0]]
    catalog.publish(bundles, number=3)
    assert pull(node, address).calibration is None
