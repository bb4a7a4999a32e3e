"""Requests that are solved by what they end in, and weights that are never scaled up."""

from pathlib import Path

import numpy as np
import pytest

from protocol.signing import Identity
from protocol.spec import Means, Statistics
from router.base.batching import Prompt, read_prompts
from router.base.loading import load_base
from router.methods.features import mixture
from router.methods.features.mixture import familiar
from router.methods.nnls_cautious import cautious_weights
from router.methods.nnls_request import wider
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests import factories
from tests.router.methods.test_mixtures import pooled, with_means

TEXTS = ["reverse it : a b c d", "say x y z", "copy ; copy now", "rotate please : k l m n o"]
TURNED = "say x y z say x y z say x y z say x y z copy ; copy now"
BOTH = " ".join(TEXTS)
FAMILIAR = 0.95


@pytest.fixture
def model(llama_base: Path, identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RoutedModel:
    monkeypatch.setattr("router.methods.features.background.TEXTS", 80)
    monkeypatch.setattr(mixture, "ENDINGS", (3, 6, 12))
    # With weights drawn at random all texts are a little alike.
    monkeypatch.setattr(mixture, "_HALF", FAMILIAR)
    pool = factories.make_pool(llama_base, identity)
    bundles = [
        factories.make_bundle(
            tmp_path / name, pool, identity, name=name, seed=seed, statistics=Statistics(means=Means())
        )
        for seed, name in enumerate("abcd")
    ]
    plain, texts = load_base(str(llama_base), device="cpu"), iter(TEXTS)
    model = RoutedModel.from_bundles(str(llama_base), bundles, device="cpu")
    return with_means(model, lambda expert: {**expert.means, **pooled(plain, next(texts), list(expert.modules))})


def slow_latest(model: RoutedModel, text: str) -> tuple[int, list[float]]:
    """Try one ending after the other, each alone; tells its length, too."""
    pool, mixtures = model.generation.pool, model.features.mixtures
    (prompt,) = read_prompts(model.base, [text])
    for length in mixture.ENDINGS:
        if len(prompt.tokens) > length:
            begin, *rest = prompt.tokens
            assert begin == model.base.tokenizer.bos_token_id, "this base begins every text with a token"
            solved = mixtures.shares(pool, [Prompt("", [begin, *rest[1 - length :]])])
            if max(sum(solved.shares[0][solved.alike == each]) for each in solved.alike) >= FAMILIAR:
                return length, solved.shares[0].tolist()
    return len(prompt.tokens), mixtures.shares(pool, [prompt]).shares[0].tolist()


def test_the_shortest_familiar_ending_counts(model: RoutedModel) -> None:
    asked = [*TEXTS, TURNED, BOTH, "say", "k d : a ; m now c b", "copy : copy : copy : a d c b a"]
    found = model.features.mixtures.latest(model.generation.pool, asked)
    slow = [slow_latest(model, text) for text in asked]
    np.testing.assert_allclose(found.shares, [shares for _, shares in slow], atol=1e-5)
    assert len({length for length, _ in slow}) > 2, slow


def test_a_chat_that_turned_is_its_last_turn(model: RoutedModel) -> None:
    pool, mixtures = model.generation.pool, model.features.mixtures
    whole, latest = (solve(pool, [TURNED]).shares[0] for solve in (mixtures.shares, mixtures.latest))
    assert whole.argmax() == 1
    assert latest.argmax() == 2


def test_what_begins_every_text_stays_where_there_is_something(model: RoutedModel) -> None:
    tokens = read_prompts(model.base, [TURNED])[0].tokens
    assert model.features.mixtures._ending(Prompt("", tokens), 3).tokens == [tokens[0], *tokens[-2:]]
    assert model.features.mixtures._ending(Prompt("", tokens[1:]), 3).tokens == tokens[-3:]


@pytest.mark.parametrize("seed", range(20))
def test_weights_against_the_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c, alike, k = rng.exponential(0.3, 9) * (rng.random(9) > 0.3), rng.integers(0, 7, 9), int(rng.integers(1, 5))
    together = np.array([sum(c[y] for y in range(9) if alike[y] == alike[z]) for z in range(9)])
    wanted = [0.0 if c[z] == 0 else min(1, together[z]) ** 1.5 * c[z] / together[z] for z in range(9)]
    most = k if familiar(c, alike) else wider(k)
    kept = sorted(range(9), key=lambda z: -wanted[z])[:most]
    expected = [wanted[z] if z in kept and wanted[z] > 1e-3 else 0 for z in range(9)]
    weights = cautious_weights(c, alike, k)
    np.testing.assert_allclose(weights, expected, atol=1e-12)
    assert all(weights[alike == each].sum() <= 1 + 1e-12 for each in alike)


def test_weights_of_a_request_go_to_every_token(model: RoutedModel) -> None:
    answer = model.answer([TURNED], RoutingChoice("nnls-cautious", k=2), max_new_tokens=3, explain=True).answers[0]
    c, alike = model.features.mixtures.latest(model.generation.pool, [TURNED])
    expected = cautious_weights(c[0], alike, 2)
    for route in answer.routes:
        given = np.zeros((len(route.experts), 4))
        np.add.at(given, (np.arange(len(given))[:, None], route.experts), route.weights)
        np.testing.assert_allclose(given, np.broadcast_to(expected, given.shape), atol=1e-6)


def test_a_denied_expert_has_no_part(model: RoutedModel) -> None:
    """Asked, then denied, then asked again: nothing of one request is left in another."""
    choice = RoutingChoice("nnls-cautious", k=2)
    before, denied, after = (
        model.losses([TURNED], ["a b"], each)
        for each in (choice, RoutingChoice("nnls-cautious", k=2, deny=("c",)), choice)
    )
    assert before == after
    assert denied != before
