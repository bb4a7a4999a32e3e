"""Enrolments and the names in them."""

import pytest

from protocol.documents import ENROLMENT_TYPE, Enrolment, check_name, read_enrolment, sign
from protocol.errors import Code, Refused
from tests.protocol.samples import CONTRIBUTOR, CREATED, STRANGER, pool


def enrolment() -> Enrolment:
    return Enrolment(pool=pool().digest, key=CONTRIBUTOR.public.hex, name="ada", created=CREATED)


def test_a_key_presents_itself_and_nobody_else() -> None:
    said, subjects = enrolment(), {"pool": pool().digest}
    assert read_enrolment(sign(ENROLMENT_TYPE, subjects, said, CONTRIBUTOR)) == said
    with pytest.raises(Refused) as refused:
        read_enrolment(sign(ENROLMENT_TYPE, subjects, said, STRANGER))
    assert refused.value.code is Code.BAD_SIGNATURE


@pytest.mark.parametrize("name", ["a" * 64, "0123456789abcdef" * 4, "AbCd" * 16])
def test_a_name_is_never_taken_for_somebodys_key(name: str) -> None:
    with pytest.raises(Refused) as refused:
        check_name(name)
    assert refused.value.code is Code.NAME_MISLEADING


@pytest.mark.parametrize("name", ["ada", "a" * 63, "g" * 64])
def test_other_names_are(name: str) -> None:
    check_name(name)
