"""What nodes learnt is put together as its papers say, and accounted for as the accountant does."""

import itertools
import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant as Accountant
from flwr.supercore.differential_privacy import compute_clip_model_update
from numpy.typing import NDArray

from client.daemon.calibration import clipped
from coordinator.fleet.calibration.aggregation import check_budget, pool, pool_privately
from coordinator.fleet.simulation.local_grid import LocalGrid
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Privacy, Strategy

RUN = LocalGrid([]).as_run()
Floats = NDArray[np.float32]


def drawn(nodes: int, numbers: int, seed: int = 0) -> list[Floats]:
    draw = np.random.default_rng(seed)
    return [draw.normal(0, 1, numbers).astype(np.float32) for _ in range(nodes)]


def mean(vectors: list[Floats]) -> list[float]:
    return [math.fsum(float(each[at]) for each in vectors) / len(vectors) for at in range(len(vectors[0]))]


def median(vectors: list[Floats]) -> list[float]:
    found = []
    for at in range(len(vectors[0])):
        ordered, half = sorted(float(each[at]) for each in vectors), len(vectors) // 2
        found.append(ordered[half] if len(vectors) % 2 else (ordered[half - 1] + ordered[half]) / 2)
    return found


def krum(vectors: list[Floats]) -> list[float]:
    """Krum as arXiv 1703.02757, section 4, has it: nearest to its n - f - 2 nearest."""
    n = len(vectors)
    near = max(1, n - max(0, (n - 3) // 2) - 2)
    sums = []
    for one in vectors:
        apart = sorted(float(np.sum((one.astype(float) - other) ** 2)) for other in vectors if other is not one)
        sums.append(math.fsum(apart[:near]))
    return [float(each) for each in vectors[sums.index(min(sums))]]


@pytest.mark.parametrize("nodes", [2, 3, 6, 11])
@pytest.mark.parametrize(("strategy", "slow"), [("fedavg", mean), ("fedmedian", median), ("krum", krum)])
def test_answers_are_put_together_as_the_papers_say(nodes: int, strategy: Strategy, slow: object) -> None:
    vectors = drawn(nodes, 40, seed=nodes)
    found = pool(RUN, strategy, [each.tobytes() for each in vectors])
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(slow(vectors), abs=1e-6)  # type: ignore[operator]


def test_liars_move_the_mean_but_neither_median_nor_krum() -> None:
    honest = [(each / 100).astype(np.float32) for each in drawn(6, 20)]
    vectors = [*honest, np.full(20, 50, np.float32), np.full(20, 50, np.float32)]
    strategies: tuple[Strategy, ...] = ("fedavg", "fedmedian", "krum")
    found = {name: pool(RUN, name, [each.tobytes() for each in vectors]) for name in strategies}
    assert np.abs(found["fedavg"]).min() > 10
    assert np.abs(found["fedmedian"]).max() < 0.1
    assert np.abs(found["krum"]).max() < 0.1


def privacy(**changes: float) -> Privacy:
    facts = {"clipping_norm": 0.5, "noise_multiplier": 1.0, "max_epsilon": 100.0, "delta": 1e-5}
    return Privacy.model_validate(facts | changes)


def test_changes_are_clipped_and_averaged_and_the_noise_is_as_large_as_was_said() -> None:
    start, n, numbers = np.ones(4000, np.float32), 5, 4000
    vectors = [start + each for each in drawn(n, numbers)]
    wanted = privacy(noise_multiplier=2.0)
    found, _ = pool_privately(RUN, wanted, start, [each.tobytes() for each in vectors], [])
    short = [(each - start) * (0.5 / np.linalg.norm(each - start)) for each in vectors]
    noise = found - start - np.mean(short, axis=0)
    assert noise.std() == pytest.approx(2.0 * 0.5 / n, rel=0.05)
    assert abs(noise.mean()) < 4 * 2.0 * 0.5 / n / math.sqrt(numbers)


@pytest.mark.parametrize("length", [0.0, 0.1, 3.0])
def test_a_node_clips_as_flower_does(length: float) -> None:
    start, change = drawn(2, 50)
    found = (start + change / np.linalg.norm(change) * length).astype(np.float32)
    theirs = [found.copy()]
    if length:
        compute_clip_model_update(theirs, [start], 0.5)
    assert clipped(found, start, 0.5).tolist() == pytest.approx(theirs[0].tolist(), abs=1e-6)


@pytest.mark.parametrize("noises", [[1.0], [1.0] * 7, [0.5, 1.0, 4.0]])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_what_is_spent_is_what_the_library_says(noises: list[float], delta: float) -> None:
    theirs = Accountant()
    for noise in noises:
        theirs.compose(dp_event.GaussianDpEvent(noise))
    updates = [each.tobytes() for each in drawn(4, 10)]
    *before, last = noises
    _, ours = pool_privately(
        RUN, privacy(noise_multiplier=last, delta=delta), np.zeros(10, np.float32), updates, before
    )
    assert ours.epsilon == pytest.approx(theirs.get_epsilon(delta), rel=1e-12)
    assert (ours.delta, ours.rounds) == (delta, len(noises))
    # Bounded by the Gaussian mechanism's own curve: sigma^-2 adds up (arXiv 1702.07476, proposition 3).
    rho = sum(noise**-2 for noise in noises) / 2
    best = min(a * rho + math.log(1 / delta) / (a - 1) for a in itertools.takewhile(lambda a: a < 500, _orders()))
    assert ours.epsilon <= best + 1e-9


def _orders() -> "itertools.count[float]":
    return itertools.count(1.1, 0.1)


def test_a_budget_that_is_spent_is_refused_before_anything_is_averaged() -> None:
    enough = check_budget(privacy(), [1.0] * 3, 1).get_privacy_spent().epsilon
    check_budget(privacy(max_epsilon=enough + 0.01), [1.0], 2)
    with pytest.raises(Refused, match="1 rounds have spent epsilon") as refused:
        check_budget(privacy(max_epsilon=enough - 0.01), [1.0], 2)
    assert refused.value.code is Code.BUDGET_EXHAUSTED
    updates = [each.tobytes() for each in drawn(4, 10)]
    with pytest.raises(Refused) as refused:
        pool_privately(RUN, privacy(max_epsilon=enough - 0.01), np.zeros(10, np.float32), updates, [1.0, 1.0])
    assert refused.value.code is Code.BUDGET_EXHAUSTED


def test_without_the_accountant_nothing_private_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ImportError("dp_accounting")

    monkeypatch.setattr("coordinator.fleet.calibration.aggregation.RdpAccountant", missing)
    with pytest.raises(Refused, match="dp-accounting") as refused:
        check_budget(privacy(), [], 1)
    assert refused.value.code is Code.SETTINGS_INVALID
