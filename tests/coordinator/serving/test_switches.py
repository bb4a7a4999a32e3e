"""An operator shuts the pool, or its door, while things are half-way, and opens it again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.policy.lifecycle import State
from coordinator.policy.switches import Switch
from protocol.bundle import CARD, Bundle
from protocol.errors import Code, Unavailable
from protocol.signing import Identity
from tests import factories
from tests.coordinator.conftest import Served
from tests.coordinator.review.test_trial import shop
from tests.coordinator.review.workshop import Workshop, make
from tests.coordinator.serving.conftest import Join, refusal

__all__ = ["shop"]
REASON = "A key was stolen."


@pytest.mark.parametrize("switch", list(Switch))
def test_frozen_and_thawed_while_an_upload_is_half_way(
    served: Served, join: Join, identity: Identity, bundle: Bundle, switch: Switch
) -> None:
    ada = join(identity)
    begun = ada.begin(bundle)
    ada.put(bundle, begun, CARD)
    switches, pool = served.registry.switches, served.pool.digest
    switches.throw(switch, REASON, pool=pool, now=served.clock())
    calls: list[Callable[[], object]] = [
        lambda: ada.enrol(served.pool, "ada"), lambda: ada.begin(bundle), lambda: ada.commit(begun),
        lambda: ada.put(bundle, begun),
    ]  # fmt: skip
    for call in calls:
        closed = refusal(call)
        assert (closed.code, isinstance(closed, Unavailable)) == (Code.CLOSED, True)
        assert REASON in closed.message
    switches.reset(switch, pool=pool, now=served.clock())
    again = ada.begin(bundle)
    assert CARD not in {missing.name for missing in again.missing}, "what had arrived is there"
    ada.put(bundle, again)
    ada.commit(again)
    assert ada.status(bundle.digest).state == "received"


@pytest.mark.parametrize("switch", list(Switch))
def test_what_was_taken_in_is_told_also_when_closed(
    served: Served, join: Join, identity: Identity, bundle: Bundle, switch: Switch
) -> None:
    ada = join(identity)
    receipt = ada.submit(bundle)
    served.registry.switches.throw(switch, REASON, pool=served.pool.digest, now=served.clock())
    assert ada.begin(bundle).receipt == receipt
    assert ada.status(bundle.digest).state == "received"


def test_a_frozen_pool_lets_nothing_in_and_yanks_all_the_same(
    shop: Workshop, tmp_path: Path, identity: Identity
) -> None:
    first, second = (make(shop, tmp_path, number, identity) for number in range(2))
    shop.receive(first)
    shop.worker.step()
    shop.receive(second)
    shop.registry.switches.throw(Switch.POOL, REASON, pool=shop.pool.digest, now=shop.clock())
    shop.worker.step()
    assert (shop.state(first), shop.state(second)) == (State.RELEASED, State.QUARANTINED)
    with pytest.raises(Unavailable) as closed:
        shop.registry.bundles.move(second.digest, State.ACCEPTED, actor="operator", now=shop.clock())
    assert closed.value.code is Code.CLOSED
    shop.registry.bundles.move(first.digest, State.YANKED, actor="operator", now=shop.clock())
    shop.worker.step()
    assert shop.listed() == []
    shop.registry.switches.reset(Switch.POOL, pool=shop.pool.digest, now=shop.clock())
    shop.worker.step()
    assert shop.listed() == [second.digest]


@pytest.mark.parametrize("switch", [Switch.POOL, Switch.REGISTRY])
def test_a_release_that_was_under_way_when_the_pool_froze_is_published_when_it_thaws(
    shop: Workshop, tmp_path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch, switch: Switch
) -> None:
    bundle, reviewer = shop.receive(make(shop, tmp_path, 1, identity)), shop.worker._reviewer
    tried, switches, pool = reviewer.try_expert, shop.registry.switches, shop.pool.digest

    def freeze(*given: Any) -> Any:
        switches.throw(switch, REASON, pool=pool, now=shop.clock())
        return tried(*given)

    with monkeypatch.context() as patch:
        patch.setattr(reviewer, "try_expert", freeze)
        shop.worker.step()
    assert (shop.state(bundle), shop.registry.releases.find()) == (State.ACCEPTED, None)
    switches.reset(switch, pool=pool, now=shop.clock())
    shop.clock.forward(hours=1)
    shop.worker.step()
    assert shop.listed() == [bundle.digest]


def test_with_the_door_shut_what_has_arrived_goes_on(shop: Workshop, tmp_path: Path, identity: Identity) -> None:
    bundle = shop.receive(factories.make_bundle(tmp_path / "one", shop.pool, identity))
    shop.registry.switches.throw(Switch.INTAKE, REASON, pool=shop.pool.digest, now=shop.clock())
    shop.worker.step()
    assert shop.listed() == [bundle.digest]


def test_read_only_then_the_worker_rests_and_goes_on_where_it_was(
    shop: Workshop, tmp_path: Path, identity: Identity
) -> None:
    first, second = (make(shop, tmp_path, number, identity) for number in range(2))
    shop.receive(first)
    shop.worker.step()
    shop.receive(second)
    switches, pool, before = shop.registry.switches, shop.pool.digest, len(shop.registry.events())
    switches.throw(Switch.REGISTRY, REASON, pool=pool, now=shop.clock())
    assert shop.worker.step() is False
    assert (shop.state(second), shop.worker._put_off) == (State.RECEIVED, {}), "and none of it counts as a failed check"
    for step, digest in ((State.YANKED, first.digest), (State.REFUSED, second.digest)):
        with pytest.raises(Unavailable) as closed:
            shop.registry.bundles.move(digest, step, actor="operator", now=shop.clock())
        assert (closed.value.code, REASON in closed.value.message) == (Code.CLOSED, True)
    switches.throw(Switch.POOL, "Later.", pool=pool, now=shop.clock())
    switches.reset(Switch.POOL, pool=pool, now=shop.clock())
    switches.reset(Switch.REGISTRY, pool=pool, now=shop.clock())
    steps = [event.step for event in shop.registry.events()[before:]]
    assert steps == ["registry off", "pool off", "pool on", "registry on"], "switches alone are written"
    shop.worker.step()
    assert shop.listed() == [first.digest, second.digest]


def test_read_only_then_restarted_with_an_upload_that_is_over(
    served: Served, join: Join, identity: Identity, bundle: Bundle
) -> None:
    ada = join(identity)
    ada.put(bundle, ada.begin(bundle), CARD)
    served.clock.forward(days=2)
    switches, pool = served.registry.switches, served.pool.digest
    switches.throw(Switch.REGISTRY, REASON, pool=pool, now=served.clock())
    served.intake.sweep()
    assert served.registry.uploads.digests() == {bundle.digest}
    switches.reset(Switch.REGISTRY, pool=pool, now=served.clock())
    served.intake.sweep()
    assert served.registry.uploads.digests() == set()
