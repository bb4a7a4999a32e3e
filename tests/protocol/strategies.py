"""What an adversary does to bytes and to JSON, for hypothesis."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=25, deadline=None)
many = settings(max_examples=100, deadline=None)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([2**53, -(2**63), 10**400, 1e999, "\ud800", "\x1b[2J", "../x", "", "A" * 5000])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)


@st.composite
def mutations(draw: st.DrawFn, raw: bytes) -> bytes:
    """Bytes that were flipped, cut, doubled or spiced in up to three places."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(raw) - 1, 0)))
        end = draw(st.integers(start, min(len(raw), start + 40)))
        middle = draw(
            st.binary(max_size=4)
            | st.just(raw[start:end] * 2)
            | st.sampled_from([b"", b" ", b"\n", b'"', b"[", b"}", b"0", b"=", b"NaN", b"\\ud800", b"1e999", b"null"])
        )
        raw = raw[:start] + middle + raw[end:]
    return raw


@st.composite
def changed_json(draw: st.DrawFn, document: bytes) -> bytes:
    """A JSON document in which one place, anywhere, holds another value, a new field, or nothing."""
    root = {"": json.loads(document)}
    places: list[tuple[Any, Any]] = []
    _walk(root, lambda holder, key: places.append((holder, key)))
    holder, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "remove", "add"])):
        case "remove" if holder is not root:
            del holder[key]
        case "add" if isinstance(holder[key], dict):
            holder[key][draw(st.text(max_size=9) | st.just("\n" * 3000))] = draw(values)
        case _:
            holder[key] = draw(values)
    return json.dumps(root[""]).encode()


def _walk(holder: Any, visit: Callable[[Any, Any], None]) -> None:
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        visit(holder, key)
        if isinstance(holder[key], dict | list):
            _walk(holder[key], visit)
