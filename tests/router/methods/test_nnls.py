"""The solver behind mixtures: exact, whatever the experts' means are like."""

import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.methods.features.nnls import Floats, nnls


def problem(n: int, *, seed: int, dims: int) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(n, dims)) + draw.normal(size=dims)
    request = draw.dirichlet(np.ones(n)) @ points + 0.3 * draw.normal(size=dims)
    gram = points @ points.T
    return gram + 1e-3 * gram.trace() / n * np.eye(n), points @ request


def cost(gram: Floats, target: Floats, c: Floats) -> float:
    return float(c @ gram @ c / 2 - target @ c)


def best_of_all_supports(gram: Floats, target: Floats) -> Floats:
    """The slow answer: try every set of experts."""
    n, best = len(target), np.zeros(len(target))
    for size in range(1, n + 1):
        for rows in map(list, combinations(range(n), size)):
            c = np.zeros(n)
            c[rows] = np.linalg.solve(gram[np.ix_(rows, rows)], target[rows])
            if (c >= 0).all() and cost(gram, target, c) < cost(gram, target, best):
                best = c
    return best


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 10_000))
def test_no_other_set_of_experts_is_better(n: int, dims: int, seed: int) -> None:
    gram, target = problem(n, seed=seed, dims=dims)
    np.testing.assert_allclose(nnls(gram, target), best_of_all_supports(gram, target), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("n", "dims"), [(0, 3), (1, 1), (60, 20), (200, 400), (500, 64), (500, 2000)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_conditions_of_a_minimum_hold(n: int, dims: int, sign: int) -> None:
    gram, target = problem(n, seed=n, dims=dims) if n else (np.zeros((0, 0)), np.zeros(0))
    c = nnls(gram, sign * target)
    gradient = gram @ c - sign * target
    scale = np.abs(target).max(initial=1)
    assert (c >= 0).all()
    assert (gradient >= -1e-9 * scale).all()
    assert np.abs(gradient * c).max(initial=0) <= 1e-9 * scale


def test_nothing_is_taken_where_nothing_helps() -> None:
    assert not nnls(np.eye(4), np.array([-1.0, 0.0, -1e-300, -5.0])).any()


def test_hundreds_of_experts_take_milliseconds() -> None:
    gram, target = problem(500, seed=0, dims=256)
    begin = time.thread_time()
    for _ in range(5):
        nnls(gram, target)
    assert (time.thread_time() - begin) / 5 < 0.25  # some 15 ms on an idle core
