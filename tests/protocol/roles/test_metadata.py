"""What python-tuf leaves open is closed, and roles are what the pool's people say."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from protocol import release
from protocol.errors import Code, Refused
from protocol.roles import metadata as roles
from protocol.roles.metadata import Keys, check_dates, check_first, check_root, fingerprint, is_signed, named, read
from protocol.signing import Identity
from tests.protocol import samples
from tests.protocol.samples import CONTRIBUTOR, COORDINATOR, STRANGER

NOW = datetime(2026, 12, 1, tzinfo=UTC)
POOL = samples.pool()
RELEASE = release.sign_release(samples.release(3), COORDINATOR)
PEOPLE = [samples.identity(number) for number in (11, 12, 13)]
ROLES = (Root.type, Targets.type, Snapshot.type, Timestamp.type)


def root(version: int = 1, *signers: Identity, threshold: int = 2) -> Metadata[Root]:
    people = Keys(tuple(key.public for key in PEOPLE), threshold)
    made = roles.make_root(POOL, version, dict.fromkeys(ROLES, people), now=NOW)
    for signer in signers:
        roles.sign(made, signer)
    return read(made.to_bytes(), Root)


def code(call: Callable[..., object], *given: object, **named_: object) -> Code:
    with pytest.raises(Refused) as refused:
        call(*given, **named_)
    return refused.value.code


def test_a_first_root_is_signed_by_its_keys_and_the_pools() -> None:
    good = root(1, PEOPLE[0], PEOPLE[2], COORDINATOR)
    check_first(good, POOL)
    check_first(good, POOL, fingerprint(good))
    assert code(check_first, good, POOL, "0" * 64) is Code.UNTRUSTED
    assert code(check_first, root(1, PEOPLE[0], COORDINATOR), POOL) is Code.BAD_SIGNATURE
    assert code(check_first, root(1, *PEOPLE), POOL) is Code.BAD_SIGNATURE
    assert code(check_first, root(1, *PEOPLE, STRANGER), POOL) is Code.BAD_SIGNATURE
    assert code(check_first, root(2, *PEOPLE, COORDINATOR), POOL) is Code.SPEC_INVALID
    assert code(check_first, good, samples.pool(name="other")) is Code.WRONG_POOL
    good.signatures[COORDINATOR.public.keyid] = root(1, *PEOPLE).signatures[PEOPLE[0].public.keyid]
    assert code(check_first, good, POOL) is Code.BAD_SIGNATURE


def test_a_fingerprint_is_of_what_is_signed() -> None:
    assert fingerprint(root(1)) == fingerprint(root(1, *PEOPLE)) != fingerprint(root(2))


def test_enough_different_keys_of_the_role_must_sign() -> None:
    signed = root(1, *PEOPLE).signed
    targets = roles.make_targets(RELEASE)
    for signer, enough in ((PEOPLE[0], False), (PEOPLE[0], False), (STRANGER, False), (PEOPLE[1], True)):
        roles.sign(targets, signer)
        assert is_signed(targets, signed) is enough


@pytest.mark.parametrize(("keys", "threshold"), [([], 1), ([0], 2), ([0, 0], 2), ([0], 0), (range(9), 1)])
def test_a_threshold_that_cannot_be_met_is_refused(keys: list[int], threshold: int) -> None:
    people = Keys(tuple(samples.identity(20 + key).public for key in keys), threshold)
    assert code(people.check, "root") is Code.SETTINGS_INVALID
    assert code(roles.make_root, POOL, 1, {"root": people}, now=NOW) is Code.SETTINGS_INVALID


def test_a_root_holds_ed25519_keys_each_under_its_own_id() -> None:
    good = root(1, *PEOPLE)
    check_root(good.signed, POOL)
    key = PEOPLE[0].public.sslib
    rsa = SSlibKey.from_crypto(generate_private_key(65537, 2048).public_key())
    weak = SSlibKey("weak", "ed25519", "ed25519", {"public": "01" + "00" * 31})
    for keyid, other, expected in (
        ("twice", key, Code.KEY_TYPE), (rsa.keyid, rsa, Code.KEY_TYPE), ("weak", weak, Code.WEAK_KEY),
        ("odd", SSlibKey("odd", "ed25519", "ed25519", {"public": "no"}), Code.KEY_TYPE),
    ):  # fmt: skip
        good.signed.keys = {PEOPLE[1].public.keyid: PEOPLE[1].public.sslib, keyid: other}
        assert code(check_root, good.signed, POOL) is expected, keyid


def test_a_root_names_its_pool_and_keeps_versions_apart() -> None:
    good = root(1, *PEOPLE).signed
    good.consistent_snapshot = False
    assert code(check_root, good, POOL) is Code.SPEC_INVALID
    good.unrecognized_fields.clear()
    assert code(check_root, good, POOL) is Code.WRONG_POOL


def test_targets_name_a_release_by_its_bytes() -> None:
    found = named(read(roles.make_targets(RELEASE).to_bytes(), Targets).signed)
    assert found.number == 3
    found.check(RELEASE.envelope)
    for other in (RELEASE.envelope + b" ", RELEASE.envelope.replace(b"a", b"b"), b""):
        assert code(found.check, other) is Code.DIGEST_MISMATCH


@pytest.mark.parametrize("change", ["nothing", "another number", "another name", "another digest"])
def test_targets_that_name_no_release_are_refused(change: str) -> None:
    targets = roles.make_targets(RELEASE).signed
    if change == "nothing":
        targets.targets.clear()
    elif change == "another number":
        targets.version = 4
    elif change == "another name":
        targets.targets = {"x": targets.targets.pop(roles.TARGET)}
    else:
        targets.targets[roles.TARGET].hashes = {"md5": "0" * 32}
    assert code(named, targets) is Code.SPEC_INVALID


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{}", b"[]", b"nonsense", b'{"signed":1,"signatures":[]}', b"[" * 100_000,
        root(1).to_bytes().replace(b'"version":1', b'"version":1,"version":2'),
        root(1).to_bytes().replace(b'"version":1', b'"version":NaN'),
        root(1).to_bytes().replace(b'"version":1', b'"version":0'),
        root(1).to_bytes().replace(b'"version":1', b'"version":9007199254740993'),
        roles.make_targets(RELEASE).to_bytes(),
    ],
)  # fmt: skip
def test_only_refusals_come_out_of_what_is_no_root(raw: bytes) -> None:
    assert code(read, raw, Root) is Code.SPEC_INVALID


def test_a_date_beyond_what_a_role_may_say_is_refused() -> None:
    raw = roles.make_targets(RELEASE).to_bytes()
    snapshot = roles.make_snapshot(1, raw, now=NOW)
    stamp = roles.make_timestamp(1, snapshot.to_bytes(), now=NOW)
    for part in (root(1), snapshot, stamp):
        signed: Any = part.signed
        check_dates([signed], now=NOW)
        check_dates([signed], now=NOW - timedelta(days=1))  # a clock that is behind
        assert code(check_dates, [signed], now=NOW - timedelta(days=1, seconds=1)) is Code.RELEASE_DATES


def test_what_is_signed_is_signed_for_a_role_and_not_as_a_document() -> None:
    """The pool's key signs documents, notes and the first root: none can be taken for another."""
    body = json.loads(root(1, COORDINATOR).to_bytes())["signed"]
    assert body["_type"] == "root"
    assert root(1).signed_bytes.startswith(b'{"_type":"root"')
    assert CONTRIBUTOR.public.keyid not in root(1, COORDINATOR).signatures
