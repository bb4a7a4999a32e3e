"""A table says where every expert is, however the pool came to be as it is."""

import pytest
import torch

from router.pool import device_table
from router.pool.device_table import DeviceView
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.gate import standardise
from router.pool.group_view import ModuleExperts, RouteGroup
from router.pool.pool import ExpertPool

PATHS = ("a.q", "a.k", "a.v")


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_table, "_FIRST_ROWS", 4)


def newcomer(number: int, d: int = 16, rank: int = 3) -> Expert:
    """Leaves one module in four alone."""
    generator = torch.Generator().manual_seed(number)
    parts = {}
    for path in [path for at, path in enumerate(PATHS) if at != number % 4]:
        a, b, gate = (torch.randn(*shape, generator=generator) for shape in ((rank, d), (8, rank), (d,)))
        parts[path] = ExpertModule(a, b, 0.5 + number, standardise(gate))
    return Expert(f"{number:064x}", f"e{number}", "", parts)


def group_of(pool: ExpertPool) -> RouteGroup:
    (group,) = pool._groups.values()
    return group


def check(pool: ExpertPool, view: DeviceView) -> None:
    group = group_of(pool)
    d, columns = group.store.gates.width, view.columns
    assert view.count.tolist() == [group.length]
    for slot in range(len(PATHS)):
        module = ModuleExperts(group, slot)
        assert view.seen[slot].nonzero().flatten().tolist() == list(module.rows)
        for row in module.rows:
            part = module.part(row)
            assert columns.gate_at[row] + slot * d * 4 == part.gate.data_ptr()
            assert columns.a_at[slot, row] == part.a.data_ptr()
            assert columns.b_at[slot, row] == part.b_t.data_ptr()
            assert part.b_t.is_contiguous()
            assert columns.ranks[slot, row] == len(part.a)
            assert columns.scalings[slot, row] == part.scaling
    # Beyond what was written there is nobody.
    assert not columns.ranks[:, len(group.store.experts) :].any()


def test_a_table_follows_its_pool() -> None:
    pool, generations = ExpertPool(), []
    for number in range(11):  # from 4 rows to 8 to 16
        pool = pool.add(newcomer(number))
        if number != 1:  # several at once, too
            generations.append((pool, group_of(pool).view))
    for generation, view in generations:
        check(generation, view)
    assert [view.capacity for _, view in generations] == [4, 4, 4] + [8] * 4 + [16] * 3


def test_who_is_hidden_is_not_seen() -> None:
    stem = ExpertPool()
    for number in range(3):
        stem = stem.add(newcomer(number))
    left, right = stem.add(newcomer(10)), stem.add(newcomer(11)).remove(newcomer(1).digest)
    for pool in (left, right, stem):
        check(pool, group_of(pool).view)


@pytest.mark.parametrize(("d", "aligned"), [(16, True), (6, False)])
def test_rows_that_begin_anywhere_are_known(d: int, aligned: bool) -> None:  # noqa: FBT001 - a parameter of the test
    pool = ExpertPool().add(newcomer(0, d))
    assert group_of(pool).view.aligned is aligned


def test_a_view_follows_until_it_is_outgrown() -> None:
    pool = ExpertPool().add(newcomer(0)).add(newcomer(1))
    held = group_of(pool).store.table.view(2, ())
    grown = pool.add(newcomer(2))
    held.follow(group_of(grown).view)
    check(grown, held)
    assert group_of(grown.add(newcomer(3, rank=16))).view.rank == held.rank
    for outgrown in (grown.add(newcomer(4, rank=17)), grown.add(newcomer(5)).add(newcomer(6)).add(newcomer(7))):
        with pytest.raises(ValueError, match="outgrew"):
            held.follow(group_of(outgrown).view)
    check(grown, held)
