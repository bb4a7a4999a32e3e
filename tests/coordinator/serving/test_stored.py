"""How many bytes are kept of one contributor's, and for how long those of what was refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.policy.lifecycle import Standing, State
from coordinator.policy.stored import StoredLimits
from coordinator.policy.switches import Switch
from coordinator.serving.intake import Intake, IntakeLimits
from coordinator.serving.refused_bytes import EVERY, RefusedBytes
from coordinator.workspace.fsck import check_store
from protocol.bundle import ADAPTER_WEIGHTS, Bundle
from protocol.errors import Code, Refused
from protocol.signing import Identity
from tests import factories
from tests.coordinator.conftest import Clock, Served
from tests.coordinator.serving.conftest import Join, accept


@pytest.mark.parametrize(
    ("standing", "passes"),
    [
        (Standing("active"), True),
        (Standing("active", kept_bytes=90), True),
        (Standing("active", kept_bytes=91), False),
        (Standing("active", refused=[("2026-11-22T00:00:00Z", 40)]), True),
        (Standing("active", refused=[("2026-11-22T00:00:00Z", 21), ("2026-11-21T00:00:00Z", 20)]), False),
        (Standing("active", refused=[("2026-11-01T00:00:00Z", 900)]), True),
    ],
)
def test_room_for_ten_bytes(clock: Clock, standing: Standing, *, passes: bool) -> None:
    limits = StoredLimits(kept_bytes=100, refused_bytes=50)
    if passes:
        limits.check(standing, 10, now=clock())
    else:
        with pytest.raises(Refused) as refused:
            limits.check(standing, 10, now=clock())
        assert refused.value.code is Code.QUOTA
    with pytest.raises(Refused):
        StoredLimits(kept_bytes=9).check(Standing("active"), 10, now=clock())
    StoredLimits(refused_bytes=1).check(Standing("active"), 10, now=clock())  # a first try is always free


def intake(served: Served, stored: StoredLimits) -> Intake:
    return Intake(
        served.pool, served.identity, served.registry, store=served.store, spool=served.spool, clock=served.clock,
        limits=IntakeLimits(first_bundles=99, stored=stored),
    )  # fmt: skip


def code(call: Intake, bundle: Bundle) -> Code:
    with pytest.raises(Refused) as refused:
        call.begin(bundle.manifest.envelope)
    return refused.value.code


def test_refused_and_under_way_count_and_time_gives_room_again(
    served: Served, join: Join, identity: Identity, bundle: Bundle, tmp_path: Path, clock: Clock
) -> None:
    join(identity).submit(bundle)
    size = bundle.manifest.total_bytes
    second = factories.make_bundle(tmp_path / "second", served.pool, identity, name="second", seed=2)
    third = factories.make_bundle(tmp_path / "third", served.pool, identity, name="third", seed=3)
    served.registry.bundles.move(bundle.digest, State.REFUSED, actor="operator", now=clock())
    assert code(intake(served, StoredLimits(refused_bytes=size)), second) is Code.QUOTA
    clock.forward(days=8)
    intake(served, StoredLimits(refused_bytes=size)).begin(second.manifest.envelope)
    tight = StoredLimits(kept_bytes=second.manifest.total_bytes + third.manifest.total_bytes - 1)
    assert code(intake(served, tight), third) is Code.QUOTA, "what is on its way has its room"
    intake(served, replace(tight, kept_bytes=tight.kept_bytes + 1)).begin(third.manifest.envelope)


def test_refused_bytes_go_and_what_others_need_stays(
    served: Served, join: Join, identity: Identity, bundle: Bundle, tmp_path: Path, clock: Clock
) -> None:
    """Refused, looked at, swept; of the same weights that came again, accepted, in a new bundle, nothing goes."""
    ada = join(identity)

    def sweep() -> None:
        intake(served, StoredLimits()).sweep()

    ada.submit(bundle)
    served.registry.bundles.move(bundle.digest, State.REFUSED, actor="operator", now=clock())
    served.registry.sketches.lift(bundle.digest, now=clock())
    files = {file.sha256 for file in bundle.manifest.files.values()}
    clock.forward(days=6)
    sweep()
    assert files <= set(served.store.digests()), "an operator may still look at it"
    again = factories.make_bundle(tmp_path / "again", served.pool, identity, name="again")
    assert again.manifest.files[ADAPTER_WEIGHTS].sha256 in files
    ada.submit(again)
    accept(served, again.digest)
    clock.forward(days=2)
    served.registry.switches.throw(Switch.REGISTRY, "A move.", pool=served.pool.digest, now=clock())
    sweep()
    assert files <= set(served.store.digests())
    served.registry.switches.reset(Switch.REGISTRY, pool=served.pool.digest, now=clock())
    sweep()
    kept = {file.sha256 for file in again.manifest.files.values()}
    assert set(served.store.digests()) == kept
    assert files - kept
    assert check_store(served.registry, served.store, now=clock()).healthy
    sweep()
    ada.submit(factories.make_bundle(tmp_path / "third", served.pool, identity, name="third", seed=3))


def test_what_comes_in_just_now_is_spared(
    served: Served, join: Join, identity: Identity, bundle: Bundle, clock: Clock
) -> None:
    join(identity).submit(bundle)
    served.registry.bundles.move(bundle.digest, State.REFUSED, actor="operator", now=clock())
    clock.forward(days=8)
    files = {file.sha256 for file in bundle.manifest.files.values()}
    one, *others = sorted(files)
    refused = RefusedBytes(served.registry, served.store, None, StoredLimits())
    with refused.spared([one]):
        refused.sweep(clock())
    assert set(served.store.digests()) == {one}
    served.store.put(bundle.folder / ADAPTER_WEIGHTS, bundle.manifest.files[ADAPTER_WEIGHTS].sha256)
    refused.sweep(clock() + EVERY / 2)
    assert set(served.store.digests()) >= {one}
    assert others
