"""What many new keys, or one, may ask of a coordinator."""

from pathlib import Path

import pytest

from coordinator.policy.lifecycle import State
from coordinator.policy.slow_start import check_slow_start
from coordinator.serving.intake import Intake, IntakeLimits
from coordinator.serving.rate import Rate
from protocol.bundle import Bundle
from protocol.errors import Code, Refused, Unavailable
from protocol.signing import Identity
from tests import factories
from tests.coordinator.conftest import Clock, Served
from tests.coordinator.contributor import enrolment
from tests.coordinator.serving.conftest import Join, accept


@pytest.mark.parametrize(
    ("states", "uploads", "passes"),
    [
        ([], 0, True), ([], 1, False), (["received"], 0, False), (["quarantined"], 0, False), (["refused"], 0, True),
        (["yanked"], 0, True), (["released"], 5, True), (["superseded", "received"], 1, True),
        (["refused", "verified"], 0, False),
    ],
)  # fmt: skip
def test_one_bundle_before_the_first_is_let_in(states: list[str], uploads: int, passes: object) -> None:
    if passes:
        check_slow_start(states, uploads, 1)
    else:
        with pytest.raises(Refused) as refused:
            check_slow_start(states, uploads, 1)
        assert refused.value.code is Code.QUOTA


def newcomers(served: Served, hourly_keys: int = 200) -> Intake:
    return Intake(
        served.pool, served.identity, served.registry, store=served.store, spool=served.spool, clock=served.clock,
        limits=IntakeLimits(hourly_keys=hourly_keys),
    )  # fmt: skip


def test_a_new_key_waits_for_its_first_verdict(
    served: Served, join: Join, identity: Identity, bundle: Bundle, tmp_path: Path
) -> None:
    ada, intake = join(identity), newcomers(served)
    second = factories.make_bundle(tmp_path / "second", served.pool, identity, name="second", seed=2)
    intake.begin(bundle.manifest.envelope)
    with pytest.raises(Refused) as refused:
        intake.begin(second.manifest.envelope)
    assert refused.value.code is Code.QUOTA
    ada.submit(bundle)
    with pytest.raises(Refused, match="1 of its bundles are under way"):
        intake.begin(second.manifest.envelope)
    accept(served, bundle.digest)
    intake.begin(second.manifest.envelope)


def test_a_refused_first_bundle_makes_room_for_another_try(
    served: Served, join: Join, identity: Identity, bundle: Bundle, tmp_path: Path
) -> None:
    join(identity).submit(bundle)
    served.registry.bundles.move(bundle.digest, State.REFUSED, actor="operator", now=served.clock())
    second = factories.make_bundle(tmp_path / "second", served.pool, identity, name="second", seed=2)
    newcomers(served).begin(second.manifest.envelope)


def test_keys_come_slowly_and_known_ones_as_they_like(served: Served) -> None:
    intake = newcomers(served, hourly_keys=8)
    keys = [enrolment(served.pool.digest, Identity.generate(), f"k{number}") for number in range(11)]
    for key in keys[:2]:
        assert intake.enrol(key, "192.0.2.1") == "active"
    with pytest.raises(Unavailable) as refused:
        intake.enrol(keys[2], "192.0.2.1")
    assert refused.value.code is Code.BUSY
    assert intake.enrol(keys[0], "192.0.2.1") == "active"
    for number, key in enumerate(keys[3:9]):
        intake.enrol(key, f"198.51.100.{number}")
    with pytest.raises(Unavailable):
        intake.enrol(keys[9], "203.0.113.7")
    served.clock.forward(hours=1)
    for key in keys[9:]:
        intake.enrol(key, "192.0.2.1")
    assert len(served.registry.contributors.all()) == 10


def test_a_rate_forgets_what_is_over(clock: Clock) -> None:
    rate = Rate(10, clock)
    for number in range(10):
        rate.take(f"n{number}")
    clock.forward(hours=1)
    rate.take("n0")
    assert set(rate._passed) == {"", "n0"}


def test_padding_an_enrolment_is_no_room(served: Served, join: Join, identity: Identity) -> None:
    join(identity)
    padded = enrolment(served.pool.digest, Identity.generate(), "bob") + b" " * 20_000
    assert refusal_of(served, padded) is Code.TOO_LARGE


def refusal_of(served: Served, envelope: bytes) -> Code:
    with pytest.raises(Refused) as refused:
        served.intake.enrol(envelope, "192.0.2.1")
    return refused.value.code
