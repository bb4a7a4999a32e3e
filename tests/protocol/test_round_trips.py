"""Whatever is written of a key, a receipt, a succession of keys or the log is read as it was written."""

import string
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from protocol.documents import (
    ENROLMENT_TYPE,
    RECEIPT_TYPE,
    Enrolment,
    Receipt,
    read_enrolment,
    read_receipt,
    read_rotation,
    sign,
    sign_rotation,
    timestamp,
)
from protocol.log.checkpoint import read_checkpoint, sign_checkpoint
from protocol.log.leaf import LogLeaf, read_leaf
from protocol.signing import Identity
from tests.protocol.samples import COORDINATOR, identity, pool
from tests.protocol.strategies import few

POOL = pool()
keys = st.integers(10, 200).map(identity)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
moments = st.datetimes(timezones=st.just(UTC)).filter(lambda moment: moment.year > 999)
names = st.from_regex(r"\A[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?\Z")
words = st.text(string.ascii_letters + string.digits + "_-.:", max_size=64)


@few
@given(key=keys, name=names, moment=moments)
def test_an_enrolment(key: Identity, name: str, moment: datetime) -> None:
    made = Enrolment(pool=POOL.digest, name=name, key=key.public.hex, created=timestamp(moment))
    assert read_enrolment(sign(ENROLMENT_TYPE, {"pool": POOL.digest}, made, key)) == made


@few
@given(bundle=digests, contributor=digests, sequence=st.integers(1, 2**53 - 1), moment=moments)
def test_a_receipt(bundle: str, contributor: str, sequence: int, moment: datetime) -> None:
    made = Receipt(
        pool=POOL.digest, bundle=bundle, contributor=contributor, sequence=sequence, received=timestamp(moment)
    )
    assert read_receipt(sign(RECEIPT_TYPE, {"bundle": bundle}, made, COORDINATOR), POOL) == made


@few
@given(seeds=st.lists(st.integers(10, 200), min_size=2, max_size=2, unique=True), moment=moments)
def test_a_rotation(seeds: list[int], moment: datetime) -> None:
    old, new = map(identity, seeds)
    said = read_rotation(sign_rotation(POOL, old, new, moment))
    assert (said.pool, said.old, said.new) == (POOL.digest, old.public.hex, new.public.hex)


@few
@given(number=st.integers(1, 2**53 - 1), said=st.lists(words, min_size=6, max_size=6))
def test_an_entry_of_the_log(number: int, said: list[str]) -> None:
    fields = dict(zip(("at", "kind", "subject", "step", "actor", "code"), said, strict=True))
    made = LogLeaf.model_validate({"number": number, **fields})
    assert read_leaf(made.encode()) == made


@few
@given(size=st.integers(0, 2**53 - 1), root=st.binary(min_size=32, max_size=32))
def test_a_checkpoint(size: int, root: bytes) -> None:
    made = sign_checkpoint(POOL, size, root, COORDINATOR)
    said = read_checkpoint(made.note.encode(), POOL)
    assert (said.size, said.root, said.text()) == (size, root, made.text())
