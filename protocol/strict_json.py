"""JSON as signed documents need it: one meaning per text.

Python's parser keeps the last of two equal keys, reads `NaN`, and recurses as deep as it is told;
two readers of one signed text could then disagree. Here all of that is refused.
"""

import json
from typing import Any, NoReturn

from protocol.errors import Code, Refused

MAX_BYTES = 1 << 20
MAX_DEPTH = 32


def loads(raw: bytes, *, what: str, code: Code = Code.ENVELOPE_SCHEMA, max_bytes: int = MAX_BYTES) -> Any:
    """Parse UTF-8 JSON strictly.

    Args:
        raw: The text.
        what: Name of the document, for the sentence of a refusal.
        code: Code of a refusal.
        max_bytes: Largest accepted size in bytes.

    Raises:
        Refused: Not JSON, too large, too deep, a repeated key, NaN or infinity.
    """
    if len(raw) > max_bytes:
        raise Refused(code, f"{what} is {len(raw)} bytes long; at most {max_bytes} are read.")
    if _deepest_nesting(raw) > MAX_DEPTH:
        raise Refused(code, f"{what} is nested deeper than {MAX_DEPTH} levels.")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, UnicodeDecodeError) as error:
        raise Refused(code, f"{what} is not strict JSON: {error}.") from error


def dumps(value: Any) -> bytes:
    """Serialise deterministically: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def _deepest_nesting(raw: bytes) -> int:
    # An upper bound that brackets inside strings only raise; counted before parsing, so that the
    # parser's own recursion is bounded.
    depth = deepest = 0
    for byte in raw:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
