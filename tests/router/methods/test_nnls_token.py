"""Choices by request and token together, against a slow float64 answer written from the formulas."""

import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from router.layer.choice import Choice, CommonChoice
from router.methods.context import Features, MethodContext
from router.methods.features.background import PublicText
from router.methods.features.covariance import Spread, spread_of
from router.methods.features.mixture import Shares
from router.methods.features.nnls import Floats
from router.methods.nnls_request import found_mass
from router.methods.nnls_token import RIDGE, ByToken, Discriminant, ScaledGate, by_token
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, make_experts, pool_of

D, O = 32, 24  # noqa: E741 - the letter of the formulas
TOKENS = torch.randn(400, D, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, D) + 0.5


class Tokens:
    """Public text that is at hand."""

    def spread(self, path: str, kind: str) -> Spread:
        assert kind == "token"
        return spread_of(TOKENS)


PUBLIC = cast("PublicText", Tokens())


def make_pool(count: int, *, absent: int, silent: int | None = None) -> ExpertPool:
    plain, _ = make_experts(count, D, O, absent=absent)
    generator = torch.Generator().manual_seed(count)
    pool = ExpertPool()
    for number, expert in enumerate(plain.experts):
        means = {path: torch.randn(D, generator=generator) for path in expert.modules}
        if number == silent:
            means.pop(PATH, None)  # tells of another module alone
        pool = pool.add(Expert(expert.digest, expert.name, "c", expert.modules, means=means))
    return pool


def slow_term(kind: type, expert: Expert, u: Tensor) -> float:
    centre, covariance = TOKENS.double().mean(0), torch.cov(TOKENS.double().T)
    if kind is ScaledGate:
        gate = expert.modules[PATH].gate.double()
        return float(gate @ (u - centre)) / math.sqrt(float(gate @ covariance @ gate)) / 3
    mean = expert.means.get(PATH)
    if mean is None:
        return 0.0
    w = torch.linalg.inv(covariance + RIDGE * covariance.trace() / D * torch.eye(D)) @ (mean.double() - centre)
    return float((u - centre) @ w) / float((mean.double() - centre) @ w)


def slow_choice(
    pool: ExpertPool, kind: type, c: Floats, alike: list[int], u: Tensor, k: int, temperature: float = 1
) -> dict[int, float]:
    """Weights of one token by position in the pool, every formula as it stands."""
    here = [at for at, expert in enumerate(pool.experts) if PATH in expert.modules]
    scores = {at: 0.3 * slow_term(kind, pool.experts[at], u.double()) + 0.7 * c[at] for at in here}
    best = sorted(here, key=lambda at: (-scores[at], at))[:k]
    exponents = {at: math.exp((scores[at] - scores[best[0]]) / (0.2 * temperature)) for at in best}
    mass = found_mass(c, np.array(alike))
    weights = {at: mass * value / sum(exponents.values()) for at, value in exponents.items()}
    together = {at: sum(weights[other] for other in best if alike[other] == alike[at]) for at in best}
    return {at: weight / max(together[at], 1) for at, weight in weights.items()}


def given(pool: ExpertPool, choice: object, tokens: int, path: str = PATH) -> list[dict[int, float]]:
    module = pool.modules[path]
    positions = {expert.digest: at for at, expert in enumerate(pool.experts)}
    if isinstance(choice, CommonChoice):
        choice = Choice(torch.tensor([choice.experts] * tokens), torch.tensor([choice.weights] * tokens))
    assert isinstance(choice, Choice)
    return [
        {positions[module.expert(row).digest]: weight for row, weight in zip(rows, weights, strict=True)}
        for rows, weights in zip(choice.experts.tolist(), choice.weights.tolist(), strict=True)
    ]


@pytest.mark.parametrize("kind", [Discriminant, ScaledGate])
@pytest.mark.parametrize(("count", "k"), [(1, 2), (9, 2), (60, 4)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 5)])
def test_a_token_is_given_what_the_formulas_say(kind: type, count: int, k: int, shape: tuple[int, int]) -> None:
    pool = make_pool(count, absent=4 if count > 4 else 0, silent=2)
    draw = np.random.default_rng(count)
    alike = [0, 0, *range(2, count)][:count]
    shares = Shares(draw.dirichlet(np.full(count, 0.3), size=shape[0]), np.array(alike))
    method = ByToken(MethodContext(pool, ["x"] * shape[0], k), shares, kind(PUBLIC))
    u = torch.randn(*shape, D, generator=torch.Generator().manual_seed(count))
    found = given(pool, method.choose(pool.modules[PATH], u), shape[0] * shape[1])
    for at, token in enumerate(u.view(-1, D)):
        expected = slow_choice(pool, kind, shares.shares[at // shape[1]], alike, token, k)
        assert found[at] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", [Discriminant, ScaledGate])
@pytest.mark.parametrize("known", [[True, False, True], [False, False], [True]])
def test_twice_as_many_at_twice_the_temperature_answer_what_nobody_has_half_of(kind: type, known: list[bool]) -> None:
    pool = make_pool(9, absent=0)
    draw = np.random.default_rng(len(known))
    # Of the same shares, half or four times as much.
    shares = Shares(
        np.stack([draw.dirichlet(np.ones(9)) * (4 if each else 0.5) for each in known]), np.array([0, 0, *range(2, 9)])
    )
    mixtures = SimpleNamespace(public=PUBLIC, shares=lambda _pool, _inputs: shares)
    asked = MethodContext(
        pool, ["x"] * len(known), 2, 1.5, features=cast("Features", SimpleNamespace(mixtures=mixtures))
    )
    plans = by_token(asked, kind)
    assert len(set(map(id, plans))) == len(set(known))
    for plan in set(plans):
        rows = [at for at, mine in enumerate(plans) if mine is plan]
        more = 1 if known[rows[0]] else 2
        u = torch.randn(len(rows), 4, D, generator=torch.Generator().manual_seed(0))
        found = given(pool, plan.method.choose(pool.modules[PATH], u), 4 * len(rows))
        for at, token in enumerate(u.view(-1, D)):
            c = shares.shares[rows[at // 4]]
            expected = slow_choice(pool, kind, c, shares.alike.tolist(), token, 2 * more, 1.5 * more)
            assert found[at] == pytest.approx(expected, abs=2e-5)


def test_a_base_may_lack_the_sibling_that_names_come_with() -> None:
    here, lacking = "layers.0.mlp.up_proj", "layers.0.mlp.gate_proj"

    class Known(Tokens):
        def spread(self, path: str, kind: str) -> Spread:
            assert path != lacking
            return super().spread(path, kind)

    pool = pool_of(torch.randn(3, D, generator=torch.Generator().manual_seed(0)), here)
    shares = Shares(np.full((1, 3), 1 / 3), np.arange(3))
    method = ByToken(MethodContext(pool, ["x"], 2), shares, ScaledGate(cast("PublicText", Known())))
    assert lacking in pool.modules[here].group.store.paths
    assert method.choose(pool.modules[here], torch.randn(1, 4, D)) is not None


@pytest.mark.parametrize("tokens", [1, 12])
def test_whom_a_request_denies_has_no_part(tokens: int) -> None:
    pool = make_pool(9, absent=0)
    allowed = pool.allowing(None, ["e1", "e4"])
    shares = Shares(np.random.default_rng(0).dirichlet(np.ones(7), size=1), np.arange(7))
    u = torch.randn(1, tokens, D)
    choice = ByToken(MethodContext(allowed, ["x"], 3), shares, Discriminant(PUBLIC)).choose(allowed.modules[PATH], u)
    fewer = ExpertPool()
    for expert in allowed.experts:
        fewer = fewer.add(expert)
    expected = ByToken(MethodContext(fewer, ["x"], 3), shares, Discriminant(PUBLIC)).choose(fewer.modules[PATH], u)
    for mine, theirs in zip(given(allowed, choice, tokens), given(fewer, expected, tokens), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("kind", [Discriminant, ScaledGate])
@pytest.mark.parametrize("k", [2, 40])
def test_a_token_alone_is_decided_as_among_others(kind: type, k: int) -> None:
    paths, generator = ("a.q", "a.k", "a.v"), torch.Generator().manual_seed(0)
    pool = ExpertPool()
    for number in range(30):
        # Everybody leaves one module alone, or none.
        mine = [path for at, path in enumerate(paths) if at != number % 4]
        part = ExpertModule(torch.randn(1, D), torch.randn(O, 1), 1.0, torch.randn(D, generator=generator))
        means = {path: torch.randn(D, generator=generator) for path in mine}
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", dict.fromkeys(mine, part), means=means))
    pool = pool.allowing(None, ["e5", "e9"])
    shares = Shares(np.random.default_rng(0).dirichlet(np.ones(28), size=1), np.array([0, 0, 0, *range(3, 28)]))
    u = torch.randn(1, 6, D, generator=generator)
    together = ByToken(MethodContext(pool, ["x"], k), shares, kind(PUBLIC))
    for path in paths:
        expected = given(pool, together.choose(pool.modules[path], u), 6, path)
        for at in range(6):
            found = ByToken(MethodContext(pool, ["x"], k), shares, kind(PUBLIC)).choose(
                pool.modules[path], u[:, at : at + 1]
            )
            assert isinstance(found, CommonChoice)
            assert given(pool, found, 1, path) == [pytest.approx(expected[at], abs=1e-6)]


def test_many_tokens_are_decided_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(9, absent=0)
    shares = Shares(np.random.default_rng(1).dirichlet(np.ones(9), size=3), np.arange(9))
    asked, u = MethodContext(pool, ["x"] * 3, 2), torch.randn(3, 7, D)
    whole = ByToken(asked, shares, Discriminant(PUBLIC)).choose(pool.modules[PATH], u)
    monkeypatch.setattr("router.layer.topk._SCORES", 40)
    pieces = ByToken(asked, shares, Discriminant(PUBLIC)).choose(pool.modules[PATH], u)
    assert given(pool, whole, 21) == [pytest.approx(each) for each in given(pool, pieces, 21)]
