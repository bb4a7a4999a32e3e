"""A pool that grows, shrinks and branches while requests run."""

import gc
import threading
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from protocol.errors import Code, Refused
from router.layer.routed_linear import RoutedLinear, RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule, Scales
from router.pool.gate import standardise
from router.pool.group_store import ModuleStore
from router.pool.pages import Column, FactorPages, GatePages, VectorPages
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, make_experts, make_layer
from tests.router.reference import route

D_IN, D_OUT = 32, 16
SIBLINGS = ("block.q_proj", "block.k_proj")
LAYER = make_layer(D_IN, D_OUT)


def newcomer(number: int, *, rank: int = 3, path: str = PATH, fill: float | None = None) -> Expert:
    generator = torch.Generator().manual_seed(number)
    a, b, gate = (torch.randn(*shape, generator=generator) for shape in ((rank, D_IN), (D_OUT, rank), (D_IN,)))
    if fill is not None:
        a.fill_(fill)
    return Expert(f"{number:032x}" + "e" * 32, f"n{number}", "c", {path: ExpertModule(a, b, 1.0, standardise(gate))})


def answer(pool: ExpertPool, u: Tensor) -> Tensor:
    with torch.inference_mode(), routing(RoutingPlan(pool, Phatgoose(2))):
        y: Tensor = LAYER(u)
    return y


@pytest.mark.parametrize("tokens", [1, 4, 64])
def test_a_generation_stays_what_it_was(tokens: int) -> None:
    old, _ = make_experts(7, D_IN, D_OUT, absent=3)
    u = torch.randn(tokens, D_IN)
    expected = answer(old, u)
    grown = old
    for number in range(60):
        grown = grown.add(newcomer(number, rank=1 + number % 9))
        assert torch.equal(answer(old, u), expected)
    shrunk = grown.remove(old.experts[1].digest).remove(old.experts[3].digest)
    assert len(old.experts) == 7
    assert len(grown.experts) == 67
    assert len(shrunk.experts) == 65
    assert torch.equal(answer(old, u), expected)
    assert not torch.equal(answer(grown, u), expected)


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_removed_expert_is_as_if_it_had_never_come(tokens: int) -> None:
    pool, slow = make_experts(20, D_IN, D_OUT)
    for number in (0, 7, 19, 8):
        pool = pool.remove(f"{number:064x}")
    u = torch.randn(tokens, D_IN)
    left = [expert for number, expert in enumerate(slow) if number not in (0, 7, 19, 8)]
    exact = route(u, LAYER.linear.weight, None, left, 2)
    assert (answer(pool, u).double() - exact.y).abs().max() / exact.y.abs().max() <= 1e-6
    assert [expert.name for expert in pool.experts] == [f"e{n}" for n in range(20) if n not in (0, 7, 19, 8)]


def test_the_last_expert_goes_and_the_base_is_left() -> None:
    pool, _ = make_experts(3, D_IN, D_OUT)
    for expert in pool.experts:
        pool = pool.remove(expert.digest)
    u = torch.randn(5, D_IN)
    assert pool.experts == ()
    assert not pool.modules
    assert torch.equal(answer(pool, u), LAYER.linear(u))
    assert len(pool.add(newcomer(1)).modules[PATH]) == 1


def test_removing_a_stranger_changes_nothing() -> None:
    pool, _ = make_experts(3, D_IN, D_OUT)
    assert pool.remove("f" * 64) is pool


def test_an_expert_can_come_back() -> None:
    pool, _ = make_experts(3, D_IN, D_OUT)
    again = pool.remove(newcomer(1).digest).add(newcomer(1)).remove(newcomer(1).digest).add(newcomer(1))
    assert [expert.name for expert in again.experts] == ["e0", "e1", "e2", "n1"]
    with pytest.raises(Refused) as refused:
        again.add(newcomer(1))
    assert refused.value.code is Code.DUPLICATE_OF


@pytest.mark.parametrize("tokens", [1, 9])
def test_branches_do_not_see_each_other(tokens: int) -> None:
    stem, slow = make_experts(5, D_IN, D_OUT)
    u = torch.randn(tokens, D_IN)
    # The first candidate would poison whatever it touches.
    left = stem.add(newcomer(1, fill=torch.nan))
    right = stem.add(newcomer(2))
    assert [expert.name for expert in left.experts][5:] == ["n1"]
    assert [expert.name for expert in right.experts][5:] == ["n2"]
    assert answer(right, u).isfinite().all()
    alone, _ = make_experts(5, D_IN, D_OUT)
    torch.testing.assert_close(answer(right, u), answer(alone.add(newcomer(2)), u))
    assert len(slow) == len(stem.experts)


def test_memory_of_what_is_gone_comes_back() -> None:
    pool, _ = make_experts(4, D_IN, D_OUT)
    store = weakref.ref(pool._store)
    assert pool.moved_bytes(torch.device("cpu")) == 0
    for number in range(40):  # candidates, none of which is kept
        pool.add(newcomer(number))
    parts = [part for expert in pool.experts for part in expert.modules.values()]
    numbers = [(part.a.numel() + part.b.numel(), part.gate.numel()) for part in parts]
    assert pool.moved_bytes(torch.device("cpu")) == sum(4 * factors + 6 * gate for factors, gate in numbers)
    pool = pool.add(newcomer(99))
    gc.collect()
    assert store() is None
    assert [expert.name for expert in pool.experts] == ["e0", "e1", "e2", "e3", "n99"]
    assert len(pool._store.experts) == 5


def test_no_old_expert_moves_when_the_pool_grows() -> None:
    pool, _ = make_experts(3, D_IN, D_OUT)
    places = [pool.modules[PATH].part(row) for row in range(3)]
    before = [(part.a.data_ptr(), part.b.data_ptr(), part.gate.data_ptr()) for part in places]
    for number in range(700):  # across several pages of each kind
        pool = pool.add(newcomer(number, rank=2))
    after = [pool.modules[PATH].part(row) for row in range(3)]
    assert [(part.a.data_ptr(), part.b.data_ptr(), part.gate.data_ptr()) for part in after] == before
    gates = pool.modules[PATH].gates
    assert torch.equal(gates[702], newcomer(699, rank=2).modules[PATH].gate)
    assert [len(block) for block in pool.modules[PATH].group.blocks] == [513, 191]


def siblings(number: int, *, rank: int = 3, scaled: bool = False) -> Expert:
    """Make an expert at two modules that read the same input."""
    scales = Scales(outer=torch.full((D_OUT,), 0.5)) if scaled else None
    part = replace(newcomer(number, rank=rank).modules[PATH], scales=scales)
    return replace(newcomer(number), modules=dict.fromkeys(SIBLINGS, part))


@pytest.mark.parametrize("room", [0, 1])
@pytest.mark.parametrize("pages", [GatePages, FactorPages, VectorPages, Column])
def test_an_expert_for_whom_memory_ran_out_leaves_nothing_behind(
    pages: type[FactorPages], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grown(*, trouble: bool) -> ExpertPool:
        pool = ExpertPool().add(siblings(0))
        if trouble:
            with monkeypatch.context() as patched:
                left, reserve = iter([*range(room), None]), pages.reserve

                def short(*args: Any) -> None:
                    if next(left) is None:
                        raise torch.OutOfMemoryError
                    reserve(*args)

                patched.setattr(pages, "reserve", short)
                with pytest.raises(torch.OutOfMemoryError):
                    pool.add(siblings(1, rank=5, scaled=True))
        for number in (1, 2, 3):
            pool = pool.add(siblings(number, rank=2 + number, scaled=number == 1))
        return pool

    ours, expected = grown(trouble=True), grown(trouble=False)
    for path in SIBLINGS:
        mine, theirs = ours.modules[path], expected.modules[path]
        assert torch.equal(mine.gates, theirs.gates)
        assert torch.equal(mine.scalings, theirs.scalings)
        layer = RoutedLinear(path, LAYER.linear)
        u = torch.randn(9, D_IN)
        with torch.inference_mode():
            with routing(RoutingPlan(ours, Phatgoose(2))):
                y = layer(u)
            with routing(RoutingPlan(expected, Phatgoose(2))):
                # Pages may begin at other addresses, by which a product's last bits may differ.
                torch.testing.assert_close(y, layer(u), atol=1e-5, rtol=1e-5)


def test_an_expert_of_other_widths_than_its_neighbours_leaves_nothing_behind() -> None:
    pool = ExpertPool().add(siblings(0))
    stranger = newcomer(1, path=SIBLINGS[1])
    part = stranger.modules[SIBLINGS[1]]
    wide = replace(part, a=torch.randn(3, D_IN + 1))
    with pytest.raises(ValueError, match="among those"):
        pool.add(replace(stranger, modules={SIBLINGS[0]: part, SIBLINGS[1]: wide}))
    assert torch.equal(pool.add(siblings(2)).modules[SIBLINGS[1]].gates[1], siblings(2).modules[SIBLINGS[1]].gate)


def test_a_part_without_room_is_no_part_left_out() -> None:
    store, part = ModuleStore(PATH, torch.device("cpu")), newcomer(0).modules[PATH]
    with pytest.raises(ValueError, match="room"):
        store.append(part, part.gate)
    assert store.absent == []


def test_the_pool_keeps_tensors_of_its_own() -> None:
    expert = newcomer(1)
    pool = ExpertPool().add(expert)
    kept = expert.modules[PATH].a.clone()
    expert.modules[PATH].a.zero_()
    assert torch.equal(pool.experts[0].modules[PATH].a, kept)


def test_experts_can_come_during_inference() -> None:
    with torch.inference_mode():
        pool = ExpertPool().add(newcomer(1))
    pool = pool.add(newcomer(2))
    assert len(pool.experts) == 2


def test_experts_arrive_while_requests_run() -> None:
    pool, _ = make_experts(6, D_IN, D_OUT)
    u = torch.randn(3, D_IN)
    expected, newest, faults = answer(pool, u), [pool], []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            if not torch.equal(answer(pool, u), expected):
                faults.append("changed")
            if not answer(newest[0], u).isfinite().all():
                faults.append("not finite")

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for number in range(100):
        newest[0] = newest[0].add(newcomer(number, rank=1 + number % 4))
    over.set()
    for thread in asking:
        thread.join(timeout=60)
    assert faults == []
    assert len(newest[0].experts) == 106
    assert torch.equal(answer(pool, u), expected)


def test_an_order_that_is_there_already_costs_nothing() -> None:
    pool, _ = make_experts(4, D_IN, D_OUT)
    digests = [expert.digest for expert in pool.experts]
    assert pool.reordered(digests) is pool
    turned = pool.reordered(digests[::-1])
    assert [expert.digest for expert in turned.experts] == digests[::-1]
    assert turned.modules[PATH].part(0).scaling == pool.modules[PATH].part(3).scaling
