"""Leaving one out, against every way to leave some out."""

from collections.abc import Collection

import pytest

from coordinator.review.blame import culprits


def broken_by(*bad: str) -> tuple[list[str], list[Collection[str]]]:
    asked: list[Collection[str]] = []

    def trial(left_out: Collection[str]) -> float | None:
        asked.append(tuple(left_out))
        return None if set(bad) - set(left_out) else 1.0

    return culprits(["a", "b", "c", "d"], trial, 0.5), asked


@pytest.mark.parametrize("bad", [("a",), ("d",), ("b", "c"), ("a", "b", "c", "d")])
def test_exactly_those_that_break_it(bad: tuple[str, ...]) -> None:
    found, asked = broken_by(*bad)
    assert found == list(bad)
    assert len(asked) <= 1 + 2 * 4


def test_of_two_that_break_it_together_the_younger() -> None:
    pair = {"b", "d"}
    assert culprits(["a", "b", "c", "d"], lambda out: 1.0 if pair.intersection(out) else None, 0.5) == ["d"]


def test_a_loss_has_somebody_to_blame_only_if_it_falls_without_him() -> None:
    costs = {"a": 0.4, "b": 0.4, "c": 2.0}
    assert culprits(list(costs), lambda out: sum(c for d, c in costs.items() if d not in out), 0.5) == ["c"]
    costs["c"] = 0.4
    assert culprits(list(costs), lambda out: sum(c for d, c in costs.items() if d not in out), 0.5) == []
