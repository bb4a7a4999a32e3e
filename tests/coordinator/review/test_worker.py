"""From received to released, with a model that does as it is told, and once with a real one."""

import errno
import hashlib
import threading
from pathlib import Path
from typing import get_args

import pytest
import structlog
from safetensors.torch import load_file, save_file

from coordinator.admission import limited_process
from coordinator.policy.lifecycle import State
from coordinator.registry.registry import Registry
from protocol.adapters import Kind
from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.release import read_release
from protocol.signing import Identity
from protocol.spec import StatisticsFile
from router.model.routed_model import RoutedModel
from tests import factories
from tests.coordinator.conftest import Clock, make_pool, resign
from tests.coordinator.review.workshop import ObedientModel, Workshop, make


@pytest.fixture
def shop(tmp_path: Path, pool: Pool, coordinator_identity: Identity, registry: Registry, clock: Clock) -> Workshop:
    return Workshop(tmp_path, pool, coordinator_identity, registry, clock)


def test_one_release_for_each_expert_and_nothing_twice(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    bundles = [shop.receive(make(shop, tmp_path, number, identity)) for number in range(3)]
    assert shop.worker.step()
    assert not shop.worker.step()
    specs = [read_release(row.envelope, shop.pool).spec for row in shop.registry.releases.all()]
    assert [len(spec.experts) for spec in specs] == [1, 2, 3]
    assert specs[2].previous == shop.registry.releases.all()[1].digest
    assert shop.model.appended == shop.listed() == [bundle.digest for bundle in bundles]
    assert [event.step for event in shop.registry.events(bundles[0].digest)] == [
        "received", "verified", "quarantined", "accepted", "released",
    ]  # fmt: skip
    row = shop.registry.bundles.find(bundles[1].digest)
    assert row is not None
    assert row.release == 2


def test_a_refused_content_never_meets_the_model(shop: Workshop, bundle: Bundle) -> None:
    shop.receive(bundle)
    shop.verdicts[bundle.digest] = Refused(Code.NOT_FINITE, "NaN.", "Train again.")
    shop.worker.step()
    row = shop.registry.bundles.find(bundle.digest)
    assert row is not None
    assert (row.state, row.code, row.hint) == (State.REFUSED, "NOT_FINITE", "Train again.")
    assert shop.model.appended == []
    assert not (shop.cache._folder / bundle.digest).exists()


def test_an_expert_that_breaks_the_model_is_out_and_the_others_stay(
    shop: Workshop, tmp_path: Path, identity: Identity
) -> None:
    good, bad, later = (make(shop, tmp_path, number, identity) for number in range(3))
    shop.model.breaks_on = {bad.digest}
    for bundle in (good, bad, later):
        shop.receive(bundle)
    shop.worker.step()
    assert [shop.state(bundle) for bundle in (good, bad, later)] == [State.RELEASED, State.REFUSED, State.RELEASED]
    assert shop.listed() == shop.model.held == [good.digest, later.digest]
    assert shop.model.appended.count(good.digest) == 1


def test_what_a_revoked_key_left_is_not_let_in(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    first = shop.receive(factories.make_bundle(tmp_path / "first", shop.pool, identity, name="first"))
    shop.worker.step()
    late = shop.receive(factories.make_bundle(tmp_path / "late", shop.pool, identity, name="late", seed=1))
    shop.registry.contributors.set_state("ada", "revoked", now=shop.clock())
    shop.worker.step()
    row = shop.registry.bundles.find(late.digest)
    assert row is not None
    assert (row.state, row.code) == (State.REFUSED, Code.KEY_REVOKED.name)
    assert shop.listed() == [first.digest]


def test_a_reviewed_pool_waits_for_an_operator(
    tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock, identity: Identity
) -> None:
    pool = make_pool(coordinator_identity, admission="reviewed")
    shop = Workshop(tmp_path, pool, coordinator_identity, registry, clock)
    first = shop.receive(make(shop, tmp_path, 1, identity))
    second = shop.receive(resign(make(shop, tmp_path, 2, identity), identity, name="e1", supersedes=first.digest))
    shop.worker.step()
    assert [shop.state(first), shop.state(second)] == [State.QUARANTINED] * 2
    assert registry.releases.find() is None
    registry.bundles.move(second.digest, State.ACCEPTED, actor="operator", now=clock())
    shop.worker.step()
    assert shop.listed() == [second.digest]
    assert shop.state(first) == State.SUPERSEDED, "an older one must not come back later"


def test_a_successor_drops_its_predecessor(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    old = shop.receive(make(shop, tmp_path, 1, identity))
    shop.worker.step()
    new = shop.receive(resign(make(shop, tmp_path, 2, identity), identity, name="e1", supersedes=old.digest))
    shop.worker.step()
    assert shop.listed() == shop.model.held == [new.digest]
    assert shop.state(old) == State.SUPERSEDED
    assert not (shop.cache._folder / old.digest).exists()


def test_a_yank_is_a_release_without_it(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    bundles = [shop.receive(make(shop, tmp_path, number, identity)) for number in range(2)]
    shop.worker.step()
    shop.registry.bundles.move(bundles[0].digest, State.YANKED, actor="operator", now=shop.clock())
    assert shop.worker.step()
    assert not shop.worker.step()
    assert shop.newest().spec.number == 3
    assert shop.listed() == [bundles[1].digest]


def test_a_release_is_renewed(shop: Workshop, bundle: Bundle) -> None:
    shop.receive(bundle)
    shop.worker.step()
    shop.clock.forward(days=29)
    assert shop.worker.step()
    assert shop.newest().spec.number == 2
    assert shop.listed() == [bundle.digest]


def test_a_restarted_worker_rebuilds_the_model(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    bundles = [shop.receive(make(shop, tmp_path, number, identity)) for number in range(2)]
    shop.worker.step()
    shop.model = ObedientModel()
    shop.worker = shop.start()
    assert not shop.worker.step()
    assert shop.model.appended == [], "nothing to try, nothing to load"
    bundles.append(shop.receive(make(shop, tmp_path, 2, identity)))
    shop.worker.step()
    assert shop.model.appended == [bundle.digest for bundle in bundles]


def test_lost_bytes_are_not_the_contributors_fault(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    lost, whole = (shop.receive(make(shop, tmp_path, number, identity)) for number in range(2))
    gates = lost.manifest.files[GATES].sha256
    shop.store.remove(gates)
    with structlog.testing.capture_logs() as logs:
        shop.worker.step()
    assert [shop.state(lost), shop.state(whole)] == [State.RECEIVED, State.RELEASED]
    assert [log["code"] for log in logs if log["event"] == "skipped"] == [Code.STORE_DAMAGED.name]
    shop.store.put(lost.folder / GATES, gates)
    shop.clock.forward(minutes=1)
    shop.worker.step()
    assert shop.state(lost) == State.RELEASED


def test_a_base_that_cannot_be_loaded_is_not_the_contributors_fault(shop: Workshop, bundle: Bundle) -> None:
    def fail() -> None:
        raise Refused(Code.BASE_UNREADABLE, "Gone.")

    load, shop.load = shop.load, fail
    shop.receive(bundle)
    shop.worker.step()
    assert shop.state(bundle) == State.QUARANTINED
    shop.load = load
    shop.clock.forward(minutes=1)
    shop.worker.step()
    assert shop.state(bundle) == State.RELEASED


def test_an_operator_who_is_quicker(shop: Workshop, bundle: Bundle) -> None:
    shop.receive(bundle)

    def refuse_meanwhile(_: Bundle) -> None:
        shop.registry.bundles.move(bundle.digest, State.REFUSED, actor="operator", now=shop.clock())

    shop.worker._check = refuse_meanwhile
    shop.worker.step()
    assert shop.state(bundle) == State.REFUSED


def test_a_damaged_cache_is_built_again(shop: Workshop, bundle: Bundle) -> None:
    shop.receive(bundle)
    row = shop.registry.bundles.find(bundle.digest)
    assert row is not None
    path = shop.cache.open(row).folder / GATES
    path.unlink()
    path.write_bytes(b"junk")
    assert shop.cache.open(row).digest == bundle.digest
    assert path.read_bytes() == (bundle.folder / GATES).read_bytes()


def test_the_pools_own_file_comes_out_of_the_store(shop: Workshop, tmp_path: Path) -> None:
    (told := tmp_path / "told").write_bytes(b"what public text looks like")
    file = StatisticsFile(sha256=hashlib.sha256(told.read_bytes()).hexdigest(), size=told.stat().st_size)
    assert shop.cache.statistics(None) is None
    assert shop.cache.statistics(file) is None, "lost"
    shop.store.put(told, file.sha256)
    found = shop.cache.statistics(file)
    assert found is not None
    assert (found.name, found.read_bytes()) == (file.sha256, told.read_bytes())
    shop.store.remove(file.sha256)
    assert shop.cache.statistics(file) == found


def test_running_until_told_to_stop(shop: Workshop, bundle: Bundle) -> None:
    shop.receive(bundle)
    stopped = threading.Event()
    thread = threading.Thread(target=shop.worker.run, args=(stopped,), kwargs={"interval_s": 60.0})
    thread.start()
    deadline = 200
    while shop.registry.releases.find() is None and deadline:
        deadline -= 1
        threading.Event().wait(0.05)
    stopped.set()
    thread.join(10)
    assert not thread.is_alive()
    assert shop.state(bundle) == State.RELEASED


def test_told_to_stop_before_the_next_bundle(shop: Workshop, bundle: Bundle) -> None:
    shop.receive(bundle)
    stopped = threading.Event()
    stopped.set()
    assert not shop.worker.step(stopped)
    assert shop.state(bundle) == State.RECEIVED


def test_a_real_model(
    tmp_path: Path, t5_base: Path, coordinator_identity: Identity, registry: Registry, clock: Clock
) -> None:
    # Random weights over a random base: nothing is unusual, and nothing harms.
    review = {"unusual_norm": 100.0, "max_rise": 100.0, "max_rise_alone": 100.0}
    pool = factories.make_pool(t5_base, coordinator_identity, review=review)
    (tmp_path / "pool.json").write_bytes(pool.envelope)
    shop = Workshop(tmp_path, pool, coordinator_identity, registry, clock)
    model = RoutedModel.from_base(str(t5_base), device="cpu")
    shop.load = lambda: model

    def check(bundle: Bundle) -> None:
        limited_process.check(bundle.folder, tmp_path / "pool.json")

    shop.check = check  # type: ignore[method-assign]
    shop.worker = shop.start()
    kinds: tuple[Kind, ...] = get_args(Kind)
    identities = [Identity.generate() for _ in kinds]
    for number, (identity, kind) in enumerate(zip(identities, kinds, strict=True)):
        shop.receive(make(shop, tmp_path, number, identity, kind), contributor=f"c{number}")
    huge = make(shop, tmp_path, len(kinds), identities[0])
    weights = load_file(huge.folder / ADAPTER_WEIGHTS)
    save_file({name: tensor * 1e30 for name, tensor in weights.items()}, huge.folder / ADAPTER_WEIGHTS)
    huge = resign(huge, identities[0])
    shop.receive(huge, contributor="c0")
    shop.worker.step()
    assert model.digests == tuple(shop.listed())
    assert len(model.digests) == len(kinds)
    row = registry.bundles.find(huge.digest)
    assert row is not None
    assert (row.state, row.code) == (State.REFUSED, "NORM_LIMIT")


def test_a_fault_that_a_bundle_sets_off_does_not_stop_the_worker(
    shop: Workshop, tmp_path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison, good = (shop.receive(make(shop, tmp_path / f"b{n}", n, identity)) for n in (1, 2))

    def append(bundle: Bundle, **named: str) -> None:
        if bundle.digest == poison.digest:
            raise RuntimeError("out of memory")
        ObedientModel.append(shop.model, bundle, **named)

    monkeypatch.setattr(shop.model, "append", append)
    shop.worker.step()
    assert shop.listed() == [good.digest]
    assert shop.state(poison) == State.QUARANTINED


def test_a_full_disk_makes_the_worker_wait(shop: Workshop, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.receive(bundle)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shop.store, "copy_to", full)
        assert not shop.worker.step()
    assert shop.state(bundle) == State.RECEIVED
    shop.clock.forward(minutes=1)
    shop.worker.step()
    assert shop.state(bundle) == State.RELEASED
