"""A key that is revoked after its bundle was checked: nothing of it is released, by whatever way."""

from pathlib import Path
from typing import Any

import pytest

from coordinator.policy.lifecycle import State
from coordinator.registry.registry import Registry
from protocol.errors import Code, Refused
from protocol.signing import Identity
from router.model.headroom import Probed
from tests.coordinator.conftest import Clock, make_pool
from tests.coordinator.fleet.campaigns.test_promotion import Bench
from tests.coordinator.review.workshop import Workshop, make


def open_shop(folder: Path, identity: Identity, registry: Registry, clock: Clock, **policy: object) -> Workshop:
    return Workshop(folder, make_pool(identity, **policy), identity, registry, clock)


def is_refused(shop: Workshop, digest: str) -> bool:
    row = shop.registry.bundles.find(digest)
    assert row is not None
    return (row.state, row.code) == (State.REFUSED, Code.KEY_REVOKED.name)


@pytest.mark.parametrize("accepted", [True, False], ids=["accepted", "quarantined"])
def test_in_a_reviewed_pool(
    tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock, *, accepted: bool
) -> None:
    shop = open_shop(tmp_path, coordinator_identity, registry, clock, admission="reviewed")
    stolen = shop.receive(make(shop, tmp_path, 1, Identity.generate()), "ada")
    good = shop.receive(make(shop, tmp_path, 2, Identity.generate()), "bob")
    shop.worker.step()
    for bundle in (stolen, good) if accepted else (good,):
        registry.bundles.move(bundle.digest, State.ACCEPTED, actor="operator", now=clock())
    registry.contributors.set_state("ada", "revoked", now=clock())
    if not accepted:
        with pytest.raises(Refused) as refused:
            registry.bundles.move(stolen.digest, State.ACCEPTED, actor="operator", now=clock())
        assert refused.value.code is Code.KEY_REVOKED
    shop.worker.step()
    assert shop.listed() == [good.digest]
    assert is_refused(shop, stolen.digest)


def test_at_the_last_moment(tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock) -> None:
    shop = open_shop(tmp_path, coordinator_identity, registry, clock)
    stolen = shop.receive(make(shop, tmp_path, 1, Identity.generate()), "ada")
    probe = shop.model.probe

    def revoke_meanwhile(*given: Any, **routed: Any) -> Probed:
        if shop.state(stolen) == State.ACCEPTED:
            registry.contributors.set_state("ada", "revoked", now=clock())
        return probe(*given, **routed)

    shop.model.probe = revoke_meanwhile  # type: ignore[method-assign]
    shop.worker.step()
    assert registry.releases.find() is None
    assert shop.state(stolen) == State.ACCEPTED
    shop.worker.step()
    assert is_refused(shop, stolen.digest)
    assert registry.releases.find() is None


@pytest.mark.parametrize("quick", [True, False], ids=["operator-is-quicker", "worker-is-quicker"])
def test_in_a_candidate(
    tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock, *, quick: bool
) -> None:
    bench = Bench(open_shop(tmp_path, coordinator_identity, registry, clock, promotion={"when": "evaluated"}), tmp_path)
    stolen, good = bench.submit("ada"), bench.submit("bob")
    both = bench.open().digest
    registry.contributors.set_state("ada-1", "revoked", now=clock())
    if not quick:
        bench.work()
    with pytest.raises(Refused) as refused:
        bench.decide(promoted=True, digest=both)
    assert refused.value.code is (Code.KEY_REVOKED if quick else Code.STATE_CHANGE)
    assert registry.releases.find() is None
    bench.work()
    assert is_refused(bench.shop, stolen.digest)
    assert bench.listed() == [good.digest], "the others are proposed without it"
    bench.decide(promoted=True)
    assert bench.shop.listed() == [good.digest]


def test_an_operators_refusal_closes_the_candidate_too(
    tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock
) -> None:
    bench = Bench(open_shop(tmp_path, coordinator_identity, registry, clock, promotion={"when": "evaluated"}), tmp_path)
    poor, good = bench.submit(), bench.submit()
    registry.bundles.move(poor.digest, State.REFUSED, actor="operator", now=clock())
    assert bench.fleet.candidates.find() is None
    bench.work()
    assert bench.listed() == [good.digest]
