from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import Code
from protocol.spec import Policy
from router.pool.gate import standardise
from tests.attacks import weights
from tests.attacks.__main__ import attacks, codes, play
from tests.attacks.arena import Attempt
from tests.attacks.weights import Expert
from tests.house.sources import ROOT


@pytest.fixture
def expert() -> Expert:
    torch.manual_seed(0)
    return Expert({"q": (torch.randn(weights.RANK, 16), torch.randn(12, weights.RANK))}, {"q": torch.randn(16)})


def update(expert: Expert) -> torch.Tensor:
    a, b = expert.factors["q"]
    return b @ a


def test_every_attack_tells_what_it_does_and_names_its_defence_by_codes() -> None:
    found = attacks()
    assert len(found) >= 23
    for name, case in found.items():
        assert (case.__doc__ or "").endswith("."), name
        known = {*Code.__members__, *Policy.model_fields}
        assert {defence for defence in case.DEFENCE.split(", ") if defence} <= known, name
    assert sum(bool(case.DEFENCE) for case in found.values()) >= 20


@pytest.mark.parametrize("disguise", [weights.regauged, weights.permuted])
def test_a_disguise_changes_every_factor_and_not_the_update(expert: Expert, disguise: Any) -> None:
    other = disguise(expert, 3)
    torch.testing.assert_close(update(other), update(expert), atol=1e-4, rtol=1e-4)
    assert all(not torch.equal(mine, its) for mine, its in zip(expert.factors["q"], other.factors["q"], strict=True))


def test_a_disturbed_expert_is_near_and_not_the_same(expert: Expert) -> None:
    mine, other = update(expert).flatten(), update(weights.disturbed(expert, 1, 0.01)).flatten()
    assert 0.999 < torch.cosine_similarity(mine, other, dim=0).item() < 1


def taken(gate: torch.Tensor, u: torch.Tensor, honest: list[torch.Tensor]) -> float:
    """The share of tokens for which a gate is among the two best, one token after another."""
    wins = 0
    for token in standardise(u):
        score = standardise(gate) @ token
        wins += sum(bool(standardise(other) @ token >= score) for other in honest) < 2
    return wins / len(u)


def test_gates_climb_above_the_mean_direction_and_stop_at_a_share_when_told() -> None:
    torch.manual_seed(1)
    u = torch.randn(300, 24) + 0.5 * torch.randn(24)
    honest = [torch.randn(24) + u.mean(0) for _ in range(5)]
    pool = [{"q": gate} for gate in honest]
    mean = weights.mean_directions({"q": [u]})["q"]
    greedy = weights.greedy_gates({"q": [u]}, pool)["q"]
    modest = weights.greedy_gates({"q": [u]}, pool, wanted=0.2)["q"]
    assert taken(greedy, u, honest) > taken(mean, u, honest)
    assert taken(modest, u, honest) < 0.3


def test_codes_are_named_the_most_frequent_first() -> None:
    def attempt(code: str) -> Attempt:
        return Attempt(None, "refused", code)  # type: ignore[arg-type] # nobody opens it

    assert codes([attempt("A"), attempt(""), attempt("B"), attempt("B")]) == "B, A"


@pytest.mark.slow  # trains the honest pool, unless that lies in build
def test_every_attack_whose_defence_is_known_is_met() -> None:
    report = play(ROOT / Path("build/attacks"))
    assert report["honest"] > 0.8
    assert [row["name"] for row in report["attackers"] if row["defence"] and not row["met"]] == []
