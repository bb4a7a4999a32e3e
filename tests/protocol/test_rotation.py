"""A rotation is both keys' word."""

from datetime import UTC, datetime

import pytest

from protocol.documents import ROTATION_TYPE, Pool, Rotation, read_rotation, sign, sign_rotation
from protocol.errors import Code, Refused
from protocol.signing import Identity, Signed
from tests.coordinator.conftest import make_pool

NOW = datetime(2026, 12, 1, tzinfo=UTC)
OLD, NEW = Identity.generate(), Identity.generate()


@pytest.fixture(scope="module")
def pool() -> Pool:
    return make_pool(Identity.generate())


def test_both_keys_sign(pool: Pool) -> None:
    envelope = sign_rotation(pool, OLD, NEW, NOW)
    said = read_rotation(envelope)
    assert (said.pool, said.old, said.new) == (pool.digest, OLD.public.hex, NEW.public.hex)
    assert said.created == "2026-12-01T00:00:00Z"
    assert set(Signed.parse(envelope).keyids) == {OLD.public.keyid, NEW.public.keyid}


@pytest.mark.parametrize("signer", [OLD, NEW, Identity.generate()])
def test_one_key_alone_says_nothing(pool: Pool, signer: Identity) -> None:
    said = Rotation(pool=pool.digest, old=OLD.public.hex, new=NEW.public.hex, created="2026-12-01T00:00:00Z")
    envelope = sign(ROTATION_TYPE, {"pool": pool.digest}, said, signer)
    with pytest.raises(Refused) as refused:
        read_rotation(envelope)
    assert refused.value.code is Code.BAD_SIGNATURE
    both = Identity.generate().countersign(Signed.parse(envelope))
    with pytest.raises(Refused) as refused:
        read_rotation(both)
    assert refused.value.code is Code.BAD_SIGNATURE, "whoever else signed"


def test_a_countersigned_envelope_says_what_it_said(pool: Pool) -> None:
    first = Signed.parse(OLD.sign(b"{}"))
    both = Signed.parse(NEW.countersign(first))
    assert (both.payload, len(both.signatures)) == (first.payload, 2)
    assert both.verify(OLD.public) == both.verify(NEW.public) == b"{}"
