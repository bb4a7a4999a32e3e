"""What fails for a while is tried again, what is rotten is nobody else's fault, and nothing stops the worker."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from sqlalchemy import update

from coordinator.admission.limited_process import CheckFailedError
from coordinator.policy.lifecycle import State
from coordinator.registry.registry import Registry
from coordinator.registry.tables import ReleaseRow
from coordinator.review.worker import TRIES
from protocol.bundle import ADAPTER_WEIGHTS, Bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from tests.coordinator.conftest import Clock, make_pool, resign
from tests.coordinator.review.workshop import ObedientModel, Workshop, make


@pytest.fixture
def shop(tmp_path: Path, pool: Pool, coordinator_identity: Identity, registry: Registry, clock: Clock) -> Workshop:
    return Workshop(tmp_path, pool, coordinator_identity, registry, clock)


def failing(shop: Workshop, poison: Bundle) -> Callable[[Bundle], None]:
    def check(bundle: Bundle) -> None:
        if bundle.digest == poison.digest:
            raise CheckFailedError("took longer than 300 s")
        shop.check(bundle)

    return check


def test_a_slow_check_is_tried_again(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    slow, good = (shop.receive(make(shop, tmp_path, number, identity)) for number in (1, 2))
    shop.worker._check = failing(shop, slow)
    shop.worker.step()
    assert [shop.state(slow), shop.state(good)] == [State.RECEIVED, State.RELEASED]
    assert not shop.worker.step(), "not at once"
    shop.worker._check = shop.check
    shop.clock.forward(minutes=1)
    shop.worker.step()
    assert shop.listed() == [good.digest, slow.digest]
    steps = [(event.kind, event.step) for event in shop.registry.events(slow.digest)]
    assert steps[:3] == [("bundle", "received"), ("check", "failed"), ("bundle", "verified")]


def test_what_its_check_held_up_does_not_take_the_place_of_its_successor(
    shop: Workshop, tmp_path: Path, identity: Identity
) -> None:
    slow = shop.receive(make(shop, tmp_path, 1, identity))
    shop.worker._check = failing(shop, slow)
    shop.worker.step()
    successor = shop.receive(resign(make(shop, tmp_path, 2, identity), identity, name="e1", supersedes=slow.digest))
    shop.worker.step()
    assert shop.listed() == [successor.digest]
    shop.worker._check = shop.check
    shop.clock.forward(minutes=1)
    shop.worker.step()
    assert shop.listed() == [successor.digest]
    assert [shop.state(slow), shop.state(successor)] == [State.SUPERSEDED, State.RELEASED]


def test_what_was_overtaken_before_anybody_let_it_in_is_not_public(
    tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock, identity: Identity
) -> None:
    pool = make_pool(coordinator_identity, admission="reviewed")
    shop = Workshop(tmp_path, pool, coordinator_identity, registry, clock)
    bundles = [shop.receive(make(shop, tmp_path, 1, identity))]
    for number in (2, 3):
        again = resign(make(shop, tmp_path, number, identity), identity, name="e1", supersedes=bundles[-1].digest)
        bundles.append(shop.receive(again))
    shop.worker.step()
    for bundle in bundles[1:]:
        registry.bundles.move(bundle.digest, State.ACCEPTED, actor="operator", now=clock())
        shop.worker.step()
    assert [shop.state(bundle) for bundle in bundles] == [State.SUPERSEDED, State.SUPERSEDED, State.RELEASED]
    sizes = [registry.bundles.public_size(bundle.manifest.files[ADAPTER_WEIGHTS].sha256) for bundle in bundles]
    assert [size is not None for size in sizes] == [False, True, True]


def test_a_check_that_never_ends_becomes_a_verdict(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    endless = shop.receive(make(shop, tmp_path, 1, identity))
    for left in reversed(range(TRIES)):
        shop.worker = shop.start()  # a restart forgets the pause, but not how often it was tried
        shop.worker._check = failing(shop, endless)
        shop.worker.step()
        assert shop.state(endless) == (State.RECEIVED if left else State.REFUSED)
    row = shop.registry.bundles.find(endless.digest)
    assert row is not None
    assert row.code == Code.VALIDATOR_FAILED.name
    assert "took longer than 300 s" in row.message
    assert "pack" not in row.hint.lower(), "packing again gives the same bundle"


def test_a_rotten_release_is_not_the_next_bundles_fault(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    shop.receive(make(shop, tmp_path, 1, identity))
    shop.worker.step()
    innocent = shop.receive(make(shop, tmp_path, 2, identity))
    row = shop.registry.releases.find()
    assert row is not None
    rot(shop, b"{}")
    stopped = threading.Event()
    thread = threading.Thread(target=shop.worker.run, args=(stopped,), kwargs={"interval_s": 0.01})
    thread.start()
    stopped.wait(0.2)
    assert thread.is_alive()
    stopped.set()
    thread.join(10)
    assert shop.state(innocent) == State.RECEIVED
    rot(shop, row.envelope)
    shop.worker.step()
    assert shop.listed()[-1] == innocent.digest


def rot(shop: Workshop, envelope: bytes) -> None:
    with shop.registry.writing() as session:
        session.execute(update(ReleaseRow).values(envelope=envelope))


def test_what_breaks_the_model_is_not_tried_all_the_time(
    shop: Workshop, tmp_path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = shop.receive(make(shop, tmp_path, 1, identity))
    tried: list[str] = []

    def append(bundle: Bundle, **_: str) -> None:
        tried.append(bundle.digest)
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(shop.model, "append", append)
        for _ in range(5):
            shop.worker.step()
        assert len(tried) == 1
        shop.clock.forward(minutes=1)
        shop.worker.step()
        shop.clock.forward(minutes=1)
        shop.worker.step()
        assert len(tried) == 2, "after a longer pause"
        assert shop.state(poison) == State.QUARANTINED
    shop.clock.forward(minutes=1)
    shop.worker.step()
    assert shop.listed() == [poison.digest]


def test_what_is_unavailable_is_not_tried_all_the_time(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    lost, unloaded = (shop.receive(make(shop, tmp_path, number, identity)) for number in (1, 2))
    shop.store.remove(lost.manifest.files[ADAPTER_WEIGHTS].sha256)
    loaded: list[str] = []

    def load() -> None:
        loaded.append("once more")
        raise Refused(Code.BASE_UNREADABLE, "Gone.")

    shop.load = load
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            shop.worker.step()
        assert [log["bundle"] for log in logs] == [lost.digest, unloaded.digest], "each is tried once"
        shop.clock.forward(minutes=1)
        shop.worker.step()
    assert len(loaded) == 2
    assert len(logs) == 4


def test_the_worker_goes_on_whatever_happens(shop: Workshop, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.receive(bundle)
    step, broken = shop.worker.step, [RuntimeError("a bug"), KeyError("another")]

    def breaks(stopped: threading.Event | None = None) -> bool:
        if broken:
            raise broken.pop()
        stopped = stopped or threading.Event()
        done = step(stopped)
        stopped.set()
        return done

    monkeypatch.setattr(shop.worker, "step", breaks)
    shop.worker.run(threading.Event(), interval_s=0.01)
    assert shop.model.held == [bundle.digest]


def test_a_verdict_that_cannot_be_written_down_holds_nobody_up(
    shop: Workshop, tmp_path: Path, identity: Identity
) -> None:
    first, second = (shop.receive(make(shop, tmp_path, number, identity)) for number in (1, 2))
    shop.model.breaks_on = {first.digest}
    remove = ObedientModel.remove

    def refuse_meanwhile(digest: str) -> None:
        if digest == first.digest:
            shop.registry.bundles.move(digest, State.REFUSED, actor="operator", now=shop.clock())
        remove(shop.model, digest)

    shop.model.remove = refuse_meanwhile  # type: ignore[method-assign]
    shop.worker.step()
    assert [shop.state(first), shop.state(second)] == [State.REFUSED, State.RELEASED]
