import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Code, Refused
from protocol.files import strict_json
from tests.protocol.strategies import few, many

unicode = st.text(st.characters(codec="utf-8"))
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | unicode,
    lambda inner: st.lists(inner) | st.dictionaries(unicode, inner),
    max_leaves=12,
)


def loads(raw: bytes, max_bytes: int = strict_json.MAX_BYTES) -> Any:
    return strict_json.loads(raw, what="The text", max_bytes=max_bytes)


@many
@given(plain)
def test_what_is_written_is_read(value: Any) -> None:
    assert loads(strict_json.dumps(value)) == value


@many
@given(st.binary(max_size=60) | st.text('[]{}":,\\1eNa ', max_size=60).map(str.encode))
def test_any_bytes_are_read_as_the_library_reads_them_or_refused(raw: bytes) -> None:
    try:
        value = loads(raw)
    except Refused as refused:
        assert refused.code is Code.ENVELOPE_SCHEMA  # noqa: PT017 - either outcome is right
    else:
        assert value == json.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"a":1}x',
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"\\u0062":2}}',
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e999]",
        b"[-1e999]",
        b'["\\ud800"]',
        b'{"\\udfff":1}',
        b"9007199254740992",
        b"-9007199254740992",
        b"1" * 5000,
        b'"\n"',
        b"[01]",
        b"['a']",
        b"[1,]",
        b"// a\n1",
        "[\u0661]".encode(),
    ],
)
def test_text_with_two_meanings_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as refused:
        loads(raw)
    assert refused.value.code is Code.ENVELOPE_SCHEMA
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("depth", [33, 10_000, 100_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded(depth: int, begin: str, end: str) -> None:
    with pytest.raises(Refused, match="nested deeper"):
        loads((begin * depth + "1" + end * depth).encode())


def test_thirty_two_levels_are_read() -> None:
    assert loads(b"[" * 32 + b"]" * 32)


def test_brackets_in_strings_neither_add_nor_hide_depth() -> None:
    assert loads(b'"' + b"[" * 1000 + b'"') == "[" * 1000
    hidden = b'["' + b"]" * 5000 + b'",' + b"[" * 5000 + b"]" * 5000 + b"]"
    escaped = b'["\\"' + b"]" * 5000 + b'",' + b"[" * 5000 + b"]" * 5000 + b"]"
    for raw in (hidden, escaped, b"]" * 5000 + b"[" * 6000):
        with pytest.raises(Refused):
            loads(raw)


def test_size_is_bounded() -> None:
    assert loads(b"[1]", max_bytes=3) == [1]
    with pytest.raises(Refused, match="at most 2 are read"):
        loads(b"[1]", max_bytes=2)
    with pytest.raises(Refused, match="at most 1048576"):
        loads(b" " * (1 << 20) + b"1")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("raw", [b'"\\', b'\\"', b'"', b"[],", b'"\\"'])
def test_a_megabyte_of_nonsense_is_refused_quickly(raw: bytes) -> None:
    with pytest.raises(Refused):
        loads(raw * ((1 << 20) // len(raw)))


@few
@given(st.dictionaries(st.text("ab"), st.integers(0, 9)))
def test_equal_values_give_equal_bytes(value: dict[str, int]) -> None:
    assert strict_json.dumps(dict(reversed(value.items()))) == strict_json.dumps(value)


def test_no_nan_is_written() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        strict_json.dumps(float("nan"))


def test_the_callers_code_is_raised() -> None:
    with pytest.raises(Refused) as refused:
        strict_json.loads(b"[", what="spec.json", code=Code.SPEC_INVALID)
    assert refused.value.code is Code.SPEC_INVALID
    assert refused.value.message.startswith("spec.json ")


def test_lines_are_read_strictly_and_named_by_number() -> None:
    def read(*lines: str) -> list[tuple[int, Any]]:
        return list(strict_json.read_lines(lines, "Line {} of the requests", Code.REQUEST_INVALID))

    assert read("1\n", "", " \n", '{"a":2}') == [(1, 1), (4, {"a": 2})]
    with pytest.raises(Refused, match="Line 3 of the requests") as refused:
        read("1", "", '{"a":1,"a":2}')
    assert refused.value.code is Code.REQUEST_INVALID
