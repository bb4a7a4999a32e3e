import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import documents, release, statement
from protocol.documents import ENROLMENT_TYPE, RECEIPT_TYPE, Enrolment, Receipt
from protocol.errors import Code, Refused
from protocol.release import ReleaseSpec
from protocol.signing import MAX_ENVELOPE_BYTES, Identity, Signed
from protocol.spec import POOL_TYPE
from tests.protocol import samples
from tests.protocol.samples import CONTRIBUTOR, COORDINATOR, CREATED, STRANGER
from tests.protocol.strategies import changed_json, few, many, mutations

POOL = samples.pool()
RELEASE = release.sign_release(samples.release(), COORDINATOR)
ENROLMENT = Enrolment(pool=POOL.digest, name="alice", key=CONTRIBUTOR.public.hex, created=CREATED)
RECEIPT = Receipt(pool=POOL.digest, bundle="4" * 64, contributor=CONTRIBUTOR.public.hex, sequence=1, received=CREATED)


def enrol(document: Enrolment, signer: Identity) -> bytes:
    return documents.sign(ENROLMENT_TYPE, {"key": "5" * 64}, document, signer)


def receipt(document: Receipt, signer: Identity) -> bytes:
    return documents.sign(RECEIPT_TYPE, {"bundle": document.bundle}, document, signer)


def refusal(read: Callable[..., object], *arguments: object) -> Refused:
    with pytest.raises(Refused) as refused:
        read(*arguments)
    assert len(refused.value.message) < 500
    return refused.value


# Laws.


@few
@given(st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 30)), st.integers(-14 * 60, 14 * 60))  # noqa: DTZ001 - hypothesis wants them bare
def test_a_timestamp_that_is_written_is_read(moment: datetime, offset_min: int) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset_min)))
    try:
        text = documents.timestamp(aware)
    except OverflowError:
        return
    assert documents.read_timestamp(text) == aware.replace(microsecond=0)
    assert documents.timestamp(documents.read_timestamp(text)) == text


def test_a_release_may_hold_more_experts_than_another_document_may_have_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    (expert,) = samples.release().experts
    digests = (f"{number:064x}" for number in range(8000))
    experts = tuple(expert.model_copy(update={"name": f"e-{each[-8:]}", "bundle": each}) for each in digests)
    large = release.sign_release(samples.release(experts=experts), COORDINATOR)
    assert len(large.envelope) > MAX_ENVELOPE_BYTES
    assert release.read_release(large.envelope, POOL) == large
    monkeypatch.setattr(release, "MAX_RELEASE_BYTES", len(large.envelope) - 1)
    assert refusal(release.read_release, large.envelope, POOL).code is Code.ENVELOPE_SCHEMA


@few
@given(st.integers(1, 2**53 - 1), st.none() | st.from_regex(r"[0-9a-f]{64}", fullmatch=True), st.integers(0, 5))
def test_a_release_that_is_signed_is_read(number: int, previous: str | None, count: int) -> None:
    (expert,) = samples.release().experts
    experts = tuple(
        expert.model_copy(update={"bundle": f"{place:064x}", "name": f"e{place}"}) for place in range(count)
    )
    spec = samples.release(number, previous=previous, experts=experts)
    written = release.sign_release(spec, COORDINATOR)
    assert release.read_release(written.envelope, POOL) == written
    assert written.spec == spec


def test_documents_that_are_signed_are_read() -> None:
    assert documents.read_pool(POOL.envelope) == documents.read_pool(POOL.envelope, COORDINATOR.public) == POOL
    assert documents.read_enrolment(enrol(ENROLMENT, CONTRIBUTOR)) == ENROLMENT
    assert documents.read_receipt(receipt(RECEIPT, COORDINATOR), POOL) == RECEIPT


def test_equal_documents_have_one_identity() -> None:
    assert samples.pool() == POOL
    assert samples.pool(name="other").digest != POOL.digest
    assert release.sign_release(samples.release(), COORDINATOR) == RELEASE


READERS: dict[str, tuple[bytes, Callable[[bytes], object], Identity]] = {
    "pool": (POOL.envelope, documents.read_pool, COORDINATOR),
    "release": (RELEASE.envelope, lambda raw: release.read_release(raw, POOL), COORDINATOR),
    "enrolment": (enrol(ENROLMENT, CONTRIBUTOR), documents.read_enrolment, CONTRIBUTOR),
    "receipt": (receipt(RECEIPT, COORDINATOR), lambda raw: documents.read_receipt(raw, POOL), COORDINATOR),
}


@pytest.mark.parametrize("kind", READERS)
def test_only_refusals_come_out_of_mutated_documents(kind: str) -> None:
    envelope, read, _ = READERS[kind]
    payload = Signed.parse(envelope).payload

    @few
    @given(mutations(envelope) | changed_json(envelope))
    def law(raw: bytes) -> None:
        try:
            read(raw)
        except Refused:
            return
        assert Signed.parse(raw).payload == payload

    law()


@pytest.mark.parametrize("kind", READERS)
def test_only_refusals_come_out_of_strange_documents_that_are_truly_signed(kind: str) -> None:
    envelope, read, signer = READERS[kind]

    @many
    @given(changed_json(Signed.parse(envelope).payload))
    def law(raw: bytes) -> None:
        try:
            read(signer.sign(raw))
        except Refused as refused:
            assert refused.message.isprintable()  # noqa: PT017 - either outcome is right

    law()


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("other", READERS)
def test_no_document_passes_for_one_of_another_type(kind: str, other: str) -> None:
    _, read, _ = READERS[kind]
    envelope, _, _ = READERS[other]
    if kind == other:
        read(envelope)
    else:
        assert refusal(read, envelope).code in {Code.UNSUPPORTED_STATEMENT, Code.BAD_SIGNATURE}


# The pool.


def test_a_pool_by_another_key_than_the_trusted_one_is_refused() -> None:
    other = samples.pool(STRANGER)
    assert documents.read_pool(other.envelope).spec.coordinator == STRANGER.public.hex
    assert refusal(documents.read_pool, other.envelope, COORDINATOR.public).code is Code.UNTRUSTED


def test_a_pool_that_names_a_key_that_did_not_sign_it_is_refused() -> None:
    forged = documents.sign(POOL_TYPE, {"base": "2" * 64}, POOL.spec, STRANGER)
    for trusted in (None, COORDINATOR.public):
        assert refusal(documents.read_pool, forged, trusted).code is Code.BAD_SIGNATURE


def test_a_pool_under_a_weak_key_is_refused() -> None:
    spec = POOL.spec.model_copy(update={"coordinator": "00" * 32})
    forged = documents.sign(POOL_TYPE, {"base": "2" * 64}, spec, STRANGER)
    assert refusal(documents.read_pool, forged).code is Code.WEAK_KEY


# Releases.


def test_a_release_by_another_key_is_refused() -> None:
    foreign = release.sign_release(samples.release(), STRANGER)
    assert refusal(release.read_release, foreign.envelope, POOL).code is Code.BAD_SIGNATURE


def test_a_release_of_another_pool_is_refused() -> None:
    other = samples.pool(name="other")
    assert refusal(release.read_release, RELEASE.envelope, other).code is Code.WRONG_POOL


@pytest.mark.parametrize("number", [0, -1, "1", 1.0, True, None, 2**53])
def test_a_release_number_counts_from_one(number: Any) -> None:
    document = json.loads(Signed.parse(RELEASE.envelope).payload)
    document["predicate"]["number"] = number
    envelope = COORDINATOR.sign(json.dumps(document).encode())
    assert refusal(release.read_release, envelope, POOL).code in {Code.SPEC_INVALID, Code.ENVELOPE_SCHEMA}


NOW = datetime(2026, 12, 1, tzinfo=UTC)


def numbered(number: int) -> release.Release:
    return release.sign_release(samples.release(number), COORDINATOR)


def continuing(seen: release.Release, number: int) -> release.Release:
    """A release that names `seen` as the one before."""
    return release.sign_release(samples.release(number).model_copy(update={"previous": seen.digest}), COORDINATOR)


def check_fresh(
    newest: release.Release, seen: release.Release | None, *between: release.Release, now: datetime = NOW
) -> None:
    known = {each.spec.number: each for each in between}
    release.check_fresh(newest, POOL, seen=seen, now=now, earlier=known.__getitem__)


def test_the_first_the_same_the_next_and_one_ahead_are_taken() -> None:
    fifth = numbered(5)
    sixth = continuing(fifth, 6)
    seventh = continuing(sixth, 7)
    check_fresh(numbered(1), None)
    for taken in (fifth, sixth, seventh, continuing(seventh, 8)):
        check_fresh(taken, fifth, sixth, seventh)


def test_a_fork_is_found_across_releases_that_were_skipped() -> None:
    fifth = numbered(5)
    sixth = continuing(fifth, 6)
    foreign = continuing(continuing(fifth, 5), 6)  # continues another fifth
    eighth = continuing(continuing(foreign, 7), 8)
    for newest, *between in (
        (continuing(foreign, 7), foreign),
        (continuing(foreign, 7), sixth),  # what is sent is not what is named
        (eighth, continuing(foreign, 7), foreign),
        (numbered(7), sixth),
    ):
        error = refusal(lambda newest=newest, between=between: check_fresh(newest, fifth, *between))
        assert error.code is Code.RELEASE_FORK


def test_a_release_too_far_ahead_is_told_as_that_and_no_way_to_it_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "MOST_BETWEEN", 1)
    chain = [numbered(5)]
    while len(chain) < 4:
        chain.append(continuing(chain[-1], 5 + len(chain)))
    check_fresh(chain[2], *chain[:2])
    error = refusal(lambda: check_fresh(chain[3], chain[0]))
    assert error.code is Code.RELEASE_TOO_FAR
    assert "Release 8 " in error.message
    assert "release 5 " in error.message


def test_a_chain_that_is_broken_is_not_followed_further() -> None:
    asked = []

    def earlier(number: int) -> release.Release:
        asked.append(number)
        return numbered(number)

    ninth = continuing(numbered(8), 9)
    error = refusal(lambda: release.check_fresh(ninth, POOL, seen=numbered(2), now=NOW, earlier=earlier))
    assert (error.code, asked) == (Code.RELEASE_FORK, [8, 7])


@pytest.mark.parametrize(("number", "seen"), [(1, 2), (5, 10**6)])
def test_an_older_release_is_refused(number: int, seen: int) -> None:
    error = refusal(lambda: check_fresh(numbered(number), numbered(seen)))
    assert error.code is Code.RELEASE_ROLLBACK
    assert str(number) in error.message
    assert str(seen) in error.message


def test_another_release_of_the_same_number_is_a_fork() -> None:
    fifth = numbered(5)
    assert refusal(lambda: check_fresh(continuing(fifth, 5), fifth)).code is Code.RELEASE_FORK


def test_a_next_release_that_continues_another_is_a_fork() -> None:
    fifth = numbered(5)
    stranger = continuing(continuing(fifth, 5), 6)
    assert refusal(lambda: check_fresh(stranger, fifth)).code is Code.RELEASE_FORK


@pytest.mark.parametrize("change", ["twice", "two of one name", "backwards"])
def test_a_release_that_cannot_be_meant_is_refused(change: str) -> None:
    document = json.loads(Signed.parse(RELEASE.envelope).payload)
    predicate = document["predicate"]
    if change == "twice":
        predicate["experts"] = predicate["experts"][:1] * 2
    elif change == "two of one name":
        predicate["experts"].append(predicate["experts"][0] | {"bundle": "5" * 64})
    else:
        predicate["expires"] = predicate["created"]
    envelope = COORDINATOR.sign(json.dumps(document).encode())
    assert refusal(release.read_release, envelope, POOL).code is Code.SPEC_INVALID


def test_a_release_expires() -> None:
    expires = documents.read_timestamp(RELEASE.spec.expires)
    check_fresh(RELEASE, None, now=expires)
    check_fresh(RELEASE, None, now=expires - timedelta(days=31))  # a clock that is a day behind
    for late in (timedelta(seconds=1), timedelta(days=2)):
        error = refusal(lambda late=late: check_fresh(RELEASE, None, now=expires + late))
        assert error.code is Code.RELEASE_EXPIRED
        assert documents.timestamp(expires + late) in error.message
        assert "clock" in error.hint


@pytest.mark.parametrize("expires", ["2027-01-02T00:00:00Z", "2036-12-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_a_date_beyond_the_pools_policy_is_refused(expires: str) -> None:
    for created in (CREATED, "2026-12-31T00:00:00Z"):
        newest = release.sign_release(samples.release(created=created, expires=expires), COORDINATOR)
        error = refusal(lambda newest=newest: check_fresh(newest, None))
        assert error.code is Code.RELEASE_DATES
        assert expires in error.message
        assert "2026-12-01T00:00:00Z" in error.message
        assert "clock" in error.hint
    last = release.sign_release(samples.release(expires="2027-01-01T00:00:00Z"), COORDINATOR)
    check_fresh(last, None)


def test_nobody_is_moved_to_a_number_that_no_pool_has_come_to() -> None:
    since = int((NOW - documents.read_timestamp(POOL.spec.created)).total_seconds())
    check_fresh(numbered(since + release.MOST_BETWEEN), None)
    for number in (since + release.MOST_BETWEEN + 1, 2**53 - 1):
        error = refusal(lambda number=number: check_fresh(numbered(number), None))
        assert error.code is Code.RELEASE_TOO_FAR
        assert str(number) in error.message
    # Nor by steps that are each taken.
    far = numbered(since + release.MOST_BETWEEN)
    assert refusal(lambda: check_fresh(continuing(far, far.spec.number + 1), far)).code is Code.RELEASE_TOO_FAR


def test_expiry_is_the_same_moment_in_every_time_zone() -> None:
    expires = documents.read_timestamp(RELEASE.spec.expires)
    east = timezone(timedelta(hours=9))
    check_fresh(RELEASE, None, now=expires.astimezone(east))
    with pytest.raises(Refused):
        check_fresh(RELEASE, None, now=(expires + timedelta(seconds=1)).astimezone(east))


def test_rollback_is_told_before_expiry() -> None:
    late = datetime(2030, 1, 1, tzinfo=UTC)
    assert refusal(lambda: check_fresh(RELEASE, numbered(2), now=late)).code is Code.RELEASE_ROLLBACK


# Enrolments and receipts.


def test_an_enrolment_by_another_key_is_refused() -> None:
    assert refusal(documents.read_enrolment, enrol(ENROLMENT, STRANGER)).code is Code.BAD_SIGNATURE


def test_a_weak_key_cannot_enrol() -> None:
    weak = ENROLMENT.model_copy(update={"key": "00" * 32})
    assert refusal(documents.read_enrolment, enrol(weak, STRANGER)).code is Code.WEAK_KEY


@pytest.mark.parametrize("name", ["", "Alice", "a/b", "../a", "a\n"])
def test_an_enrolment_has_a_plain_name(name: str) -> None:
    odd = ENROLMENT.model_copy(update={"name": name})
    assert refusal(documents.read_enrolment, enrol(odd, CONTRIBUTOR)).code is Code.SPEC_INVALID


def test_a_receipt_by_another_key_is_refused() -> None:
    assert refusal(documents.read_receipt, receipt(RECEIPT, CONTRIBUTOR), POOL).code is Code.BAD_SIGNATURE


def test_a_receipt_of_another_pool_is_refused() -> None:
    other = RECEIPT.model_copy(update={"pool": "6" * 64})
    assert refusal(documents.read_receipt, receipt(other, COORDINATOR), POOL).code is Code.WRONG_POOL


def test_the_subject_of_a_document_is_what_it_is_about() -> None:
    parsed = statement.parse(Signed.parse(RELEASE.envelope).payload, release.RELEASE_TYPE)
    assert parsed.subjects == {"pool": POOL.digest}
    assert statement.read(ReleaseSpec, parsed.predicate, what="It") == RELEASE.spec
