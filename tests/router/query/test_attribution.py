"""Figures of who answered, by hand and against scipy-free definitions."""

import math

import numpy as np
import pytest

from router.query.answer import Answer, Answered, ModuleRoute, merge_answers
from router.query.attribution import (
    Panel,
    correlation,
    distribution,
    expert_shares,
    module_shares,
    oracle_divergence,
    panels_document,
    token_weights,
)

EXPERTS = ("ada", "bob", "cy")


def route(module: str, experts: list[list[int]], weights: list[list[float]], **facts: object) -> ModuleRoute:
    """Make a route of a module that reads the input."""
    return ModuleRoute(module, True, np.array(experts), np.array(weights, dtype=np.float32), **facts)  # type: ignore[arg-type]


TWO = [
    route("q", [[0, 1], [0, 2]], [[0.75, 0.25], [0.5, 0.5]]),
    route("k", [[1, 2], [1, 0]], [[1.0, 0.0], [0.5, 0.5]]),
]


def test_shares_by_expert_module_and_all_together() -> None:
    assert distribution(TWO, 3) == pytest.approx([1.75 / 4, 1.75 / 4, 0.5 / 4])
    assert list(expert_shares(TWO, EXPERTS)) == ["ada", "bob", "cy"]
    modules = module_shares(TWO, EXPERTS)
    assert list(modules) == ["q", "k"]
    assert modules["q"] == pytest.approx([1.25 / 2, 0.25 / 2, 0.5 / 2])


def test_nothing_routed_has_no_shares() -> None:
    assert distribution([], 3).tolist() == [0, 0, 0]
    assert expert_shares([], EXPERTS) == dict.fromkeys(EXPERTS, 0.0)


def test_whole_distributions_are_taken_where_they_are() -> None:
    full = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=np.float32)
    assert distribution([route("q", [[0], [2]], [[1.0], [1.0]], full=full)], 3) == pytest.approx([0.4, 0.25, 0.35])


def test_divergence_from_the_oracle_is_what_its_expert_lacks() -> None:
    panel = Panel("t", TWO, oracle=2)
    assert oracle_divergence(panel, 3) == pytest.approx(-math.log(0.125))
    assert oracle_divergence(Panel("t", TWO), 3) is None
    alone = route("q", [[0]], [[1.0]])
    assert oracle_divergence(Panel("t", (alone,), oracle=0), 3) == 0
    assert oracle_divergence(Panel("t", (alone,), oracle=1), 3) == math.inf


def test_correlation_is_pearsons() -> None:
    panels = [
        Panel("a", [route("q", [[0, 1]], [[share, 1 - share]])], 0, score)
        for share, score in ((0.9, 0.7), (0.5, 0.9), (0.2, 0.3))
    ]
    kl = [-math.log(0.9), -math.log(0.5), -math.log(0.2)]
    assert correlation(panels, 2) == pytest.approx(np.corrcoef(kl, [0.7, 0.9, 0.3])[0, 1], abs=1e-6)


@pytest.mark.parametrize(
    "panels",
    [
        [],
        [Panel("a", TWO, 0, 0.5)],
        [Panel("a", TWO, 0, 0.5), Panel("b", TWO, 0, 0.7)],
        [Panel("a", TWO, 0), Panel("b", TWO, 1, 0.7)],
    ],
)
def test_no_correlation_without_two_panels_that_differ(panels: list[Panel]) -> None:
    assert correlation(panels, 3) is None


def test_a_tokens_weights_are_means_over_the_modules_that_read_it() -> None:
    assert token_weights(TWO, 1, 2, 3) == pytest.approx([0.5, 0.25, 0.25])
    assert token_weights(TWO, 2, 2, 3) is None


def test_no_correlation_where_an_oracle_was_given_nothing() -> None:
    panels = [
        Panel(title, [route("q", [[0, 1]], [[share, 1 - share]])], oracle, score)
        for title, share, oracle, score in (("a", 0.9, 0, 0.7), ("b", 0.5, 0, 0.9), ("c", 0.2, 2, 0.3))
    ]
    assert correlation(panels[:2], 3) is not None
    assert correlation(panels, 3) is None


def test_a_decoders_first_row_read_its_start_token() -> None:
    decoder = [ModuleRoute("q", False, np.array([[0], [1]]), np.ones((2, 1), dtype=np.float32))]
    assert token_weights(decoder, 1, 2, 3) is None
    assert token_weights(decoder, 2, 2, 3) == pytest.approx([0, 1, 0])
    assert token_weights(decoder, 3, 2, 3) is None


def test_whole_distributions_are_what_maps_and_tokens_show() -> None:
    whole = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=np.float32)
    routes = [route("q", [[0], [1]], [[1.0], [1.0]], full=whole)]
    assert module_shares(routes, EXPERTS)["q"] == pytest.approx([0.3, 0.45, 0.25])
    assert token_weights(routes, 1, 2, 3) == pytest.approx([0.1, 0.6, 0.3])


def test_batches_are_joined_by_the_names_of_their_experts() -> None:
    def batch(names: tuple[str, ...], at: int) -> Answered:
        full = np.eye(2, dtype=np.float32)[[at]]
        return Answered(names, (Answer("y", routes=(route("q", [[at]], [[1.0]], full=full),)),))

    found = merge_answers([batch(("ada", "bob"), 1), batch(("bob", "cy"), 0)])
    assert found.experts == EXPERTS
    for answer in found.answers:
        assert expert_shares(answer.routes, found.experts)["bob"] == 1
        assert [each.experts.tolist() for each in answer.routes] == [[[1]]]


def test_batches_are_joined_by_bundles_where_these_are_known() -> None:
    def batch(names: tuple[str, ...], digests: tuple[str, ...]) -> Answered:
        return Answered(names, (Answer("y", routes=(route("q", [[0]], [[1.0]]),)),), digests)

    old, new, other = "a" * 64, "b" * 64, "c" * 64
    found = merge_answers([batch(("ada", "bob"), (old, other)), batch(("ada",), (new,))])
    assert found.experts == (f"ada@{old[:16]}", "bob", f"ada@{new[:16]}")
    assert found.digests == (old, other, new)
    assert [answer.routes[0].experts.tolist() for answer in found.answers] == [[[0]], [[2]]]
    # Joined once more, with what knows only one of them, names stay what they say.
    assert merge_answers([found, batch(("ada",), (new,))]).experts == found.experts
    assert merge_answers([batch(("ada",), (new,)), batch(("bob",), (other,))]).experts == ("ada", "bob")
    # By names, where a batch came over the wire.
    assert merge_answers([batch(("ada",), (old,)), batch(("ada",), ())]).experts == ("ada",)


def test_the_document_has_no_infinity() -> None:
    document = panels_document([Panel("a", [route("q", [[0]], [[1.0]])], 1, 0.5)], EXPERTS)
    assert document == {
        "panels": [
            {
                "title": "a",
                "oracle": "bob",
                "score": 0.5,
                "kl_from_oracle": None,
                "shares": {"ada": 1.0, "bob": 0.0, "cy": 0.0},
            }
        ],
        "correlation_of_kl_and_score": None,
    }
