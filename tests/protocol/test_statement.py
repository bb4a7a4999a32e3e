import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import statement
from protocol.errors import Code, Refused
from protocol.statement import STATEMENT_TYPE, Strict
from tests.protocol.strategies import changed_json, few, many

TYPE = "https://example.org/thing/v1"
SHA = "ab" * 32


class Thing(Strict):
    number: int
    ratio: float = 0.5
    name: str = ""


PAYLOAD = statement.build(TYPE, {"b.txt": SHA, "a.txt": "0" * 64}, Thing(number=1))

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
things = st.builds(
    Thing,
    number=st.integers(-(2**53) + 1, 2**53 - 1),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    name=texts,
)


def refusal(payload: bytes, predicate_type: str = TYPE) -> Code:
    with pytest.raises(Refused) as refused:
        statement.parse(payload, predicate_type)
    assert len(refused.value.message) < 300
    return refused.value.code


def altered(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(PAYLOAD)
    change(document)
    return json.dumps(document).encode()


def with_subject(**fields: Any) -> bytes:
    return altered(lambda document: document["subject"][0].update(fields))


@few
@given(st.dictionaries(names, digests, min_size=1, max_size=4), things)
def test_what_is_built_is_parsed(subjects: dict[str, str], thing: Thing) -> None:
    payload = statement.build(TYPE, subjects, thing)
    parsed = statement.parse(payload, TYPE)
    assert parsed.subjects == subjects
    assert statement.read(Thing, parsed.predicate, what="It") == thing
    assert statement.build(TYPE, dict(reversed(subjects.items())), thing) == payload


@many
@given(changed_json(PAYLOAD))
def test_a_changed_statement_is_refused_or_read_strictly(payload: bytes) -> None:
    try:
        parsed = statement.parse(payload, TYPE)
        thing = statement.read(Thing, parsed.predicate, what="It")
    except Refused as refused:
        assert len(refused.message) < 500  # noqa: PT017 - either outcome is right
        assert refused.message.isprintable()  # noqa: PT017 - as above
    else:
        assert statement.read(Thing, json.loads(thing.model_dump_json()), what="It") == thing


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"1", b"null"])
def test_what_is_no_statement_is_refused(payload: bytes) -> None:
    assert refusal(payload) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("field", ["_type", "subject", "predicateType", "predicate"])
def test_a_missing_field_is_refused(field: str) -> None:
    assert refusal(altered(lambda document: document.pop(field))) is Code.ENVELOPE_SCHEMA


def test_an_unknown_field_is_refused() -> None:
    assert refusal(altered(lambda document: document.update(comment=""))) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("value", ["https://in-toto.io/Statement/v0.1", STATEMENT_TYPE + "/", None, 1, [], {}])
def test_another_statement_type_is_refused(value: Any) -> None:
    assert refusal(altered(lambda document: document.update(_type=value))) is Code.UNSUPPORTED_STATEMENT


@pytest.mark.parametrize("value", ["https://example.org/thing/v2", "", None, 1, [], {}])
def test_another_predicate_type_is_refused(value: Any) -> None:
    assert refusal(altered(lambda document: document.update(predicateType=value))) is Code.UNSUPPORTED_STATEMENT
    assert refusal(PAYLOAD, "https://example.org/other/v1") is Code.UNSUPPORTED_STATEMENT


@pytest.mark.parametrize("value", [None, 1, "a", [], True])
def test_a_predicate_that_is_no_object_is_refused(value: Any) -> None:
    assert refusal(altered(lambda document: document.update(predicate=value))) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("value", [[], {}, None, "a", 1, [1], [[]], [{}], [None]])
def test_a_statement_names_subjects(value: Any) -> None:
    assert refusal(altered(lambda document: document.update(subject=value))) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../a",
        "..",
        ".",
        ".hidden",
        "a/b",
        "a\\b",
        "C:a",
        "a\x00b",
        "a\n",
        "a b",
        "a\u202etxt",
        "é",
        "-a",
        "a" * 129,
        None,
        1,
        ["a"],
    ],
)
def test_a_subject_name_is_plain(name: Any) -> None:
    assert refusal(with_subject(name=name)) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize(
    "digest",
    [
        {},
        {"sha512": SHA * 2},
        {"sha256": SHA, "sha512": SHA * 2},
        {"sha256": SHA.upper()},
        {"sha256": SHA[:-1]},
        {"sha256": SHA + "\n"},
        {"sha256": None},
        SHA,
        None,
    ],
)
def test_a_subject_has_one_sha256(digest: Any) -> None:
    assert refusal(with_subject(digest=digest)) is Code.ENVELOPE_SCHEMA


def test_a_subject_has_no_other_field() -> None:
    assert refusal(with_subject(uri="https://example.org")) is Code.ENVELOPE_SCHEMA


def test_a_subject_stands_once() -> None:
    raw = altered(lambda document: document["subject"].append(document["subject"][0]))
    assert refusal(raw) is Code.ENVELOPE_SCHEMA


def test_duplicate_keys_deep_inside_are_refused() -> None:
    assert refusal(PAYLOAD.replace(b'"number":1', b'"number":2,"number":1')) is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({}, "number"),
        ({"number": "8"}, "number"),
        ({"number": True}, "number"),
        ({"number": 1.5}, "number"),
        ({"number": None}, "number"),
        ({"number": 1, "ratio": "0.5"}, "ratio"),
        ({"number": 1, "name": 1}, "name"),
        ({"number": 1, "extra": 1}, "extra"),
        ([], "document"),
    ],
)
def test_nothing_is_coerced(value: Any, place: str) -> None:
    with pytest.raises(Refused) as refused:
        statement.read(Thing, value, what="The thing")
    assert refused.value.code is Code.SPEC_INVALID
    assert refused.value.message.startswith(f"The thing: {place}: ")


@pytest.mark.parametrize("field", ["x" * 100_000, "\x1b[2J\n", "\u202e"])
def test_a_strangers_field_name_neither_fills_nor_steers_a_terminal(field: str) -> None:
    with pytest.raises(Refused) as refused:
        statement.read(Thing, {"number": 1, field: 1}, what="The thing")
    assert len(refused.value.message) < 500
    assert refused.value.message.isprintable()


def test_a_document_does_not_change_after_reading() -> None:
    thing = statement.read(Thing, {"number": 1}, what="It")
    with pytest.raises(ValueError, match="frozen"):
        thing.number = 2  # type: ignore[misc] # that it is refused is the point
