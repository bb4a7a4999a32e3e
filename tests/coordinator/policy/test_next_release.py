from datetime import UTC, datetime, timedelta

import pytest

from coordinator.policy.next_release import next_release
from protocol.documents import Pool
from protocol.release import Release, ReleasedExpert, sign_release
from protocol.signing import Identity
from tests.coordinator.conftest import make_pool

HELD = {digit * 64 for digit in "abc"}
START = datetime(2026, 11, 22, 12, tzinfo=UTC)


def expert(digit: str, *, contributor: str = "ada", name: str | None = None) -> ReleasedExpert:
    return ReleasedExpert(name=name or f"expert-{digit}", contributor=contributor, bundle=digit * 64)


@pytest.fixture
def pool(coordinator_identity: Identity) -> Pool:
    return make_pool(coordinator_identity, release_days=30)


def first(pool: Pool, identity: Identity, *experts: ReleasedExpert) -> Release:
    change = next_release(pool, None, accepted=experts, held=HELD, now=START)
    assert change is not None
    return sign_release(change, identity)


def test_the_first_release(pool: Pool) -> None:
    change = next_release(pool, None, accepted=[expert("a")], held=HELD, now=START)
    assert change is not None
    assert (change.number, change.previous, change.experts) == (1, None, (expert("a"),))
    assert change.pool == pool.digest
    assert (change.created, change.expires) == ("2026-11-22T12:00:00Z", "2026-12-22T12:00:00Z")


def test_a_new_expert_takes_the_end_and_the_others_their_places(pool: Pool, coordinator_identity: Identity) -> None:
    previous = first(pool, coordinator_identity, expert("b"), expert("a"))
    change = next_release(pool, previous, accepted=[expert("c")], held=HELD, now=START)
    assert change is not None
    assert change.experts == (expert("b"), expert("a"), expert("c"))
    assert (change.number, change.previous) == (2, previous.digest)


def test_a_successor_replaces_its_own_kind_only(pool: Pool, coordinator_identity: Identity) -> None:
    bobs = expert("b", contributor="bob", name="poems")
    previous = first(pool, coordinator_identity, expert("a", name="poems"), bobs)
    change = next_release(pool, previous, accepted=[expert("c", name="poems")], held=HELD, now=START)
    assert change is not None
    assert change.experts == (bobs, expert("c", name="poems"))


def test_what_is_gone_stays_out(pool: Pool, coordinator_identity: Identity) -> None:
    previous = first(pool, coordinator_identity, expert("a"), expert("b"))
    change = next_release(pool, previous, accepted=[expert("c")], held={"b" * 64}, now=START)
    assert change is not None
    assert change.experts == (expert("b"),)


def test_nothing_to_say(pool: Pool, coordinator_identity: Identity) -> None:
    assert next_release(pool, None, accepted=[], held=HELD, now=START) is None
    previous = first(pool, coordinator_identity, expert("a"))
    assert next_release(pool, previous, accepted=[expert("a")], held=HELD, now=START) is None


def test_a_release_is_renewed_before_it_expires(pool: Pool, coordinator_identity: Identity) -> None:
    previous = first(pool, coordinator_identity, expert("a"))
    assert next_release(pool, previous, accepted=[], held=HELD, now=START + timedelta(days=20)) is None
    renewed = next_release(pool, previous, accepted=[], held=HELD, now=START + timedelta(days=21))
    assert renewed is not None
    assert renewed.experts == previous.spec.experts
    assert renewed.number == 2
