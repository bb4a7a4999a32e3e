"""A release's cap, through the whole worker: fitted once for each list, and again for every other one."""

from pathlib import Path

import pytest

from coordinator.policy.lifecycle import State
from coordinator.policy.review_rule import NEAR_GATES
from coordinator.registry.registry import Registry
from coordinator.registry.tables import CapRow
from protocol.bundle import Bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.release import CapFile, read_release
from protocol.signing import Identity
from router.model.capture import ALIKE
from router.pool.calibration import Calibration
from tests.coordinator.conftest import Clock, make_pool
from tests.coordinator.review.workshop import Workshop, make


@pytest.fixture
def shop(tmp_path: Path, pool: Pool, coordinator_identity: Identity, registry: Registry, clock: Clock) -> Workshop:
    return Workshop(tmp_path, pool, coordinator_identity, registry, clock)


def settle(shop: Workshop) -> None:
    while shop.worker.step():
        pass


def arrive(shop: Workshop, folder: Path, number: int, *, greedy: float = 0.0) -> Bundle:
    """A contributor of one's own hands in one expert, and the worker works."""
    bundle = make(shop, folder, number, Identity.generate())
    if greedy:
        shop.model.greedy[bundle.digest] = greedy
    shop.receive(bundle, f"key-{number}")
    settle(shop)
    assert shop.state(bundle) == "released"
    return bundle


def cap(shop: Workshop) -> tuple[CapFile | None, Calibration | None]:
    file = shop.newest().spec.cap
    content = shop.registry.caps.content(file.sha256) if file else None
    assert (file is None) == (content is None)
    if file and content:
        assert len(content) == file.size
    return file, Calibration.load(content) if content else None


def test_a_release_is_capped_where_somebody_takes_too_much(shop: Workshop, tmp_path: Path) -> None:
    arrive(shop, tmp_path, 1)
    assert shop.model.fits == []  # one may take everything
    arrive(shop, tmp_path, 2)
    assert cap(shop) == (None, None)
    taker = arrive(shop, tmp_path, 3, greedy=2.0)
    _, biases = cap(shop)
    assert biases is not None
    assert (biases.experts, biases.bias.tolist()) == ((taker.digest,), [[-2.0]])
    assert [len(held) for held in shop.model.fits] == [2, 3]


def test_a_list_is_fitted_once_also_after_a_restart(shop: Workshop, tmp_path: Path) -> None:
    for number in (1, 2):
        arrive(shop, tmp_path, number, greedy=1.0)
    fits = len(shop.model.fits)
    shop.worker = shop.start()
    settle(shop)
    assert len(shop.model.fits) == fits
    assert shop.newest().spec.number == 2


def test_a_yank_does_not_wait_for_a_fit_and_is_followed_by_one(shop: Workshop, tmp_path: Path) -> None:
    kept = arrive(shop, tmp_path, 1)
    taker = arrive(shop, tmp_path, 2, greedy=1.0)
    last = arrive(shop, tmp_path, 3, greedy=2.0)
    before, _ = cap(shop)
    shop.registry.bundles.move(taker.digest, State.YANKED, actor="operator", now=shop.clock())
    shop.model.greedy.clear()
    settle(shop)
    carried = shop.registry.releases.find(4)
    assert carried is not None
    assert read_release(carried.envelope, shop.pool).spec.cap == before
    assert shop.newest().spec.number == 5
    assert cap(shop) == (None, None)
    assert before is not None
    assert shop.model.fits[-1] == (kept.digest, last.digest)


def test_a_yank_goes_out_also_where_no_cap_can_be_fitted(shop: Workshop, tmp_path: Path) -> None:
    arrive(shop, tmp_path, 1)
    bad = arrive(shop, tmp_path, 2)
    arrive(shop, tmp_path, 3, greedy=1.0)
    before, _ = cap(shop)

    def broken() -> None:
        raise Refused(Code.BASE_UNREADABLE, "The base is gone.")

    shop.load = broken
    shop.worker = shop.start()
    shop.registry.bundles.move(bad.digest, State.YANKED, actor="operator", now=shop.clock())
    settle(shop)
    assert bad.digest not in shop.listed()
    assert cap(shop)[0] == before
    shop.load = lambda: shop.model
    settle(shop)
    assert shop.newest().spec.number == 4  # not tried at every turn
    shop.clock.forward(hours=2)
    shop.model.greedy.clear()
    settle(shop)
    assert cap(shop) == (None, None)


def test_a_newcomer_waits_where_no_cap_can_be_fitted(shop: Workshop, tmp_path: Path) -> None:
    arrive(shop, tmp_path, 1)
    shop.model.fit_cap = lambda *_, **__: (_ for _ in ()).throw(MemoryError)  # type: ignore[method-assign]
    bundle = make(shop, tmp_path, 2, Identity.generate())
    shop.receive(bundle, "key-2")
    settle(shop)
    assert shop.state(bundle) == "accepted"
    assert len(shop.listed()) == 1


def test_a_cap_that_a_restored_registry_lost_is_fitted_again(shop: Workshop, tmp_path: Path) -> None:
    arrive(shop, tmp_path, 1)
    arrive(shop, tmp_path, 2, greedy=1.5)
    before, _ = cap(shop)
    with shop.registry.writing() as session:
        for row in session.query(CapRow):
            session.delete(row)
    settle(shop)
    assert cap(shop)[0] == before
    assert shop.newest().spec.number == 2  # the same bytes, so nothing new to say


def test_newcomers_count_as_one_until_they_have_settled(shop: Workshop, tmp_path: Path) -> None:
    arrive(shop, tmp_path, 1)
    shop.clock.forward(days=6)
    arrive(shop, tmp_path, 2)
    assert shop.model.newcomers == ["key-1", "key-2"]
    shop.clock.forward(days=1)
    arrive(shop, tmp_path, 3)
    assert shop.model.newcomers == ["key-2", "key-3"]
    fits, number = len(shop.model.fits), shop.newest().spec.number
    shop.clock.forward(days=6)
    settle(shop)
    assert shop.model.newcomers == ["key-3"]
    assert len(shop.model.fits) == fits + 1
    assert shop.newest().spec.number == number  # nobody is lowered by it, so nothing new to say
    again = make(shop, tmp_path, 4, Identity.generate())
    shop.receive(again, "key-2-again")
    settle(shop)
    assert shop.model.newcomers == ["key-2-again", "key-3"]


@pytest.mark.parametrize("policy", [{"enrolment": "approved"}, {"admission": "reviewed"}, {"settle_days": 0}])
def test_where_a_person_looks_nobody_is_new(
    tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock, policy: dict[str, object]
) -> None:
    shop = Workshop(tmp_path, make_pool(coordinator_identity, **policy), coordinator_identity, registry, clock)
    for number in (1, 2):
        bundle = make(shop, tmp_path, number, Identity.generate())
        shop.receive(bundle, f"key-{number}")
        settle(shop)
        if shop.state(bundle) == "quarantined":
            shop.registry.bundles.move(bundle.digest, State.ACCEPTED, actor="operator", now=clock())
            settle(shop)
    assert len(shop.model.fits) == 1
    assert shop.model.newcomers == []


def test_who_chooses_as_another_does_waits_for_a_person_also_after_a_restart(shop: Workshop, tmp_path: Path) -> None:
    first = arrive(shop, tmp_path, 1)
    like = make(shop, tmp_path, 2, Identity.generate())
    shop.model.alike[frozenset((first.digest, like.digest))] = 0.93
    shop.receive(like, "key-2")
    settle(shop)
    row = shop.registry.bundles.find(like.digest)
    assert row is not None
    assert (row.state, row.code) == ("quarantined", "NEAR_GATES")
    assert "e1 by key-1" in row.message
    shop.worker = shop.start()
    settle(shop)
    assert shop.state(like) == "quarantined"
    shop.registry.bundles.move(like.digest, State.ACCEPTED, actor="operator", now=shop.clock())
    settle(shop)
    assert shop.listed() == [first.digest, like.digest]


def test_ones_own_may_choose_as_ones_own_does(shop: Workshop, tmp_path: Path) -> None:
    identity = Identity.generate()
    bundles = [make(shop, tmp_path, number, identity) for number in (1, 2)]
    shop.model.alike[frozenset(bundle.digest for bundle in bundles)] = 1.0
    for bundle in bundles:
        shop.receive(bundle, "key-1")
        settle(shop)
    assert len(shop.listed()) == 2


def test_policy_and_router_mean_the_same_by_alike() -> None:
    assert NEAR_GATES == ALIKE
