"""JSON as signed documents need it: one meaning per text.

Python's parser keeps the last of two equal keys, reads `NaN`, turns `1e999` into infinity, lets half
a surrogate pair through, and recurses as deep as it is told; two readers of one signed text could
then disagree. Here all of that is refused: what is read is I-JSON (RFC 7493).
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from protocol.errors import Code, Refused

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)).difference(b"[]{}"))
_MAX_INTEGER = (1 << 53) - 1


def loads(raw: bytes, *, what: str, code: Code = Code.ENVELOPE_SCHEMA, max_bytes: int = MAX_BYTES) -> Any:
    """Parse UTF-8 JSON strictly.

    Args:
        raw: The text.
        what: Name of the document, for the sentence of a refusal.
        code: Code of a refusal: for what is not JSON, too large or too deep, holds a key twice, NaN or infinity, an
            integer beyond 2^53, or text that is not Unicode.
        max_bytes: Largest accepted size in bytes.
    """
    if len(raw) > max_bytes:
        raise Refused(code, f"{what} is {len(raw)} bytes long; at most {max_bytes} are read.")
    if _deepest_nesting(raw) > MAX_DEPTH:
        raise Refused(code, f"{what} is nested deeper than {MAX_DEPTH} levels.")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=_integer)
        dumps(value)  # what cannot be written back (NaN, 1e999, half a surrogate pair) has no one meaning
    except ValueError as error:
        raise Refused(code, f"{what} is not strict JSON: {error}.") from error
    return value


def read_lines(lines: Iterable[str], what: str, code: Code) -> Iterator[tuple[int, Any]]:
    """Parse JSON Lines strictly, as `loads`; blank lines are passed over.

    Args:
        lines: One value a line.
        what: Name of a line, for the sentence of a refusal: "Line {} of the requests".
        code: Code of a refusal.

    Yields:
        The line's number, from 1, and its value.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, loads(line.encode(), what=what.format(number), code=code)


def dumps(value: Any) -> bytes:
    """Serialise deterministically: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def _deepest_nesting(raw: bytes) -> int:
    # Counted before parsing, so that the parser's own recursion is bounded. Strings are cut out
    # first: a closing bracket inside one would hide an opening one outside.
    depth = deepest = 0
    for byte in _STRING.sub(b"", raw).translate(None, _NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > deepest:
            deepest = depth
            if deepest > MAX_DEPTH:
                break
    return deepest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > len(str(-_MAX_INTEGER)) or abs(number := int(digits)) > _MAX_INTEGER:
        raise ValueError("an integer is beyond 2^53")
    return number
