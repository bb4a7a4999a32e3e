"""One token alone: whoever is scored in half precision first is chosen as if all had been scored in float32."""

import itertools
import math
import threading

import pytest
import torch
from torch import Tensor

from router.layer import topk_single
from router.layer.autotune import Autotuner
from router.layer.choice import CommonChoice
from router.pool.calibration import Calibration
from router.pool.group_view import RouteGroup
from router.pool.pages import GatePages
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, make_experts, pool_of, siblings
from tests.router.reference import route

D = 64
LIKELY, ALL = topk_single._WAYS["likely"], topk_single._WAYS["all"]


@pytest.fixture
def rescored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have every vector that is looked up by itself noted, by its number."""
    numbers: list[int] = []
    vector = RouteGroup.vector

    def noted(group: RouteGroup, number: int) -> object:
        numbers.append(number)
        return vector(group, number)

    monkeypatch.setattr(RouteGroup, "vector", noted)
    return numbers


def random_token(d: int, seed: int, *, kind: str = "plain") -> Tensor:
    u = torch.randn(d, generator=torch.Generator().manual_seed(seed))
    match kind:
        case "outlier":
            u[seed % d] = 3e3
        case "moved":
            u += 1.0
        case "tiny":
            u *= 1e-3
        case "huge":
            u *= 100
    return u


def check(pool: ExpertPool, u: Tensor, k: int) -> None:
    """Hold the choice against float64, and against float32 for everybody."""
    module = pool.modules[PATH]
    quick, plain = (way(module.group, u, k, 1.0) for way in (LIKELY, ALL))
    assert quick is not None
    assert plain is not None
    mine, theirs = quick[module.slot], plain[module.slot]
    assert mine is not None
    assert theirs is not None
    x = u.double() - u.double().mean()
    scale = math.sqrt(len(u) * (float(x.square().mean()) + 1e-5))
    exact = (module.gates.double() @ x / scale).tolist()
    order = sorted(range(len(exact)), key=lambda row: -exact[row])[: k + 1]
    cut = [abs(exact[a] - exact[b]) for a, b in itertools.pairwise(order)]
    top = [module.rows[row] for row in order[:k]]
    if all(gap > 1e-5 for gap in cut):
        assert mine.experts == theirs.experts == top
    assert mine.weights == pytest.approx(theirs.weights, abs=2e-6)
    assert sum(mine.weights) == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 2, 9, 17, 100, 600])
@pytest.mark.parametrize("d", [33, 512])
def test_likely_experts_hold_the_best(count: int, d: int) -> None:
    pool, _ = make_experts(count, d, 4, seed=count, absent=3 if count > 9 else 0)
    for kind in ("plain", "outlier", "moved", "tiny", "huge"):
        for k in (1, 2, 8):
            for seed in range(3):
                check(pool, random_token(d, seed, kind=kind), k)


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4, 1e-5])
def test_gates_that_are_equal_in_half_precision_are_told_apart(apart: float, rescored: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(D, generator=generator)
    # Six that are nearly the token, among many that are not; none has six neighbours that a half tells apart.
    gates = [torch.randn(D, generator=generator) for _ in range(300)]
    for at in range(6):
        gates[40 * at] = u + apart * torch.randn(D, generator=generator)
    pool = pool_of(gates)
    check(pool, u, 2)
    assert 6 <= len(rescored) - 1 <= 6 + 2
    assert all(number % 40 == 1 for number in rescored[1:7])


@pytest.mark.parametrize("count", [3, 7, 12, 300])
def test_among_equals_the_first_is_taken(count: int) -> None:
    gate = torch.randn(D, generator=torch.Generator().manual_seed(0))
    pool = pool_of([-gate, *[gate] * count, *[-gate] * 30])
    assert LIKELY(pool.modules[PATH].group, gate, 2, 1.0) == [CommonChoice([1, 2], [0.5, 0.5])]


def test_gates_of_any_size_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(2)
    sizes = [1e15, 1.0, 1e-2, 1e-4, 0.0, 1e-30, 1e-42]
    gates = [torch.randn(D, generator=generator) * sizes[at % len(sizes)] for at in range(200)]
    spike = torch.full((D,), 1e-6)
    spike[3] = 1
    pool = pool_of([*gates, spike, -spike])
    for seed in range(20):
        check(pool, random_token(D, seed), 3)
        check(pool, random_token(D, seed, kind="outlier"), 3)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1e4, 1e15, math.inf, math.nan])
def test_a_token_that_halves_do_not_hold_is_scored_as_ever(size: float) -> None:
    pool, _ = make_experts(40, D, 4)
    u = random_token(D, 0) * size
    assert str(LIKELY(pool.modules[PATH].group, u, 2, 1.0)) == str(ALL(pool.modules[PATH].group, u, 2, 1.0))


def test_few_experts_are_scored_twice(rescored: list[int]) -> None:
    pool, _ = make_experts(600, 1024, 1, equal_rank=1)
    for seed in range(20):
        LIKELY(pool.modules[PATH].group, random_token(1024, seed), 2, 1.0)
    assert 2 * 20 <= len(rescored) - 20 <= 6 * 20


@pytest.mark.parametrize("d", [33, 2048, 16384])
@pytest.mark.parametrize("kind", ["one sign", "random", "small"])
def test_no_score_is_further_off_than_is_said(d: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(d)
    signs = torch.tensor([1.0, -1.0]).repeat(d // 2 + 1)[:d]
    match kind:
        case "one sign":  # sums grow from the first product to the last
            u, gate = signs * (1 + torch.rand(d, generator=generator) / 2048), signs
        case "random":
            u, gate = torch.randn(d, generator=generator), torch.randn(d, generator=generator)
        case _:  # of which halves keep few digits
            u, gate = torch.full((d,), 1e-7), torch.full((d,), 1e-7)
            u[0] = gate[1] = 0.02
    group = pool_of([gate]).modules[PATH].group
    found = float(torch.mv(group.halves[0], u.half())[1])
    exact = float(group.vector(1).astype("float64") @ u.double().numpy()) / math.sqrt(d)
    assert abs(found - exact) <= topk_single._error_of_halves(d, float(u.norm()))


def test_modules_that_share_an_input_are_told_apart_each_for_itself() -> None:
    pool, slow = siblings(90, D, 4)
    u = random_token(D, 5)
    group = pool.modules["a.q"].group
    found = LIKELY(group, u, 3, 1.0)
    assert found is not None
    for path, experts in slow.items():
        module, choice = pool.modules[path], found[pool.modules[path].slot]
        assert choice is not None
        exact = route(u[None], torch.zeros(4, D), None, experts, 3)
        assert [module.rows.index(row) for row in choice.experts] == exact.experts[0]
        assert choice.weights == pytest.approx(exact.weights[0], abs=1e-6)


def test_nobody_hidden_is_taken_and_biases_count() -> None:
    pool, _ = make_experts(80, D, 4)
    u = random_token(D, 3)
    group = pool.modules[PATH].group
    first = LIKELY(group, u, 1, 1.0)
    assert first is not None
    assert first[0] is not None
    best = pool.experts[first[0].experts[0]].digest
    check(pool.remove(best), u, 2)
    bias = torch.randn(1, 60, generator=torch.Generator().manual_seed(0)).numpy()
    digests = tuple(expert.digest for expert in pool.experts[:60])
    calibration = Calibration(digests, (PATH,), bias, torch.tensor([0.7]).numpy())
    for known in (pool.calibrated(calibration), pool.remove(best).calibrated(calibration)):
        group = known.modules[PATH].group
        for seed in range(20):
            u = random_token(D, seed)
            quick, plain = LIKELY(group, u, 3, 0.5), ALL(group, u, 3, 0.5)
            assert quick is not None
            assert plain is not None
            assert quick[0] is not None
            assert plain[0] is not None
            assert quick[0].experts == plain[0].experts
            assert quick[0].weights == pytest.approx(plain[0].weights, abs=2e-6)


def test_a_copy_grows_with_its_gates_and_never_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.pool.pages._FIRST_GATES", 4)
    generator = torch.Generator().manual_seed(0)
    pages = GatePages(2, D, torch.device("cpu"))
    places: list[int] = []
    for number in range(40):
        pages.append([torch.randn(D, generator=generator), None if number % 5 == 0 else torch.ones(D)])
        if number % 3 == 0:
            continue
        halves = pages.halves(number + 1)
        assert [half.data_ptr() for half in halves][: len(places)] == places
        places = [half.data_ptr() for half in halves]
        for half, block in zip(halves, pages.blocks(number + 1), strict=True):
            assert torch.equal(half, (block / math.sqrt(D)).half())
    before = [half.clone() for half in pages.halves(5)]
    pages.append([torch.full((D,), torch.nan)] * 2)
    assert all(map(torch.equal, pages.halves(5), before))


def test_nobody_reads_half_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.pool.pages._FIRST_GATES", 16)
    pages, failed = GatePages(1, D, torch.device("cpu")), []

    def read(rows: int) -> None:
        halves = torch.cat(pages.halves(rows))
        if not torch.equal(halves, (torch.cat(pages.blocks(rows)) / math.sqrt(D)).half()):
            failed.append(rows)

    for number in range(200):
        pages.append([torch.full((D,), float(number))])
        readers = [threading.Thread(target=read, args=(rows,)) for rows in (number + 1, number // 2 + 1, number + 1)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    assert not failed


def test_which_way_is_found_out_once_and_only_where_it_may_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    autotuner = Autotuner()

    def settle(kind: object, ways: dict[str, object], *_: object, cold: bool) -> str:
        assert cold
        asked.extend(ways)
        autotuner.known[kind] = "likely"
        return "likely"

    monkeypatch.setattr(topk_single, "autotuner", autotuner)
    monkeypatch.setattr(autotuner, "settle", settle)
    pool, _ = make_experts(40, D, 4)
    group, u = pool.modules[PATH].group, random_token(D, 0)
    assert topk_single.choose_for_one(group, u, 2, 1.0) == ALL(group, u, 2, 1.0)
    assert not asked
    monkeypatch.setattr(topk_single, "_MANY", 40 * D)
    for _ in range(3):
        assert topk_single.choose_for_one(group, u, 2, 1.0) == LIKELY(group, u, 2, 1.0)
    assert asked == ["all", "likely"]
    topk_single.choose_for_one(group, u, 40, 1.0)
    assert asked == ["all", "likely"]
