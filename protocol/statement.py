"""in-toto Statements v1: the one shape of everything that is signed here.

A statement names subjects by digest and says something about them in a predicate
(https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md). A bundle, a pool, a
release, an enrolment and a receipt differ only in their predicate type.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.errors import Code, Refused
from protocol.files import strict_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
# What pydantic says of a form, said of a document.
_PLAIN_REASONS = {"missing": "it is missing", "extra_forbidden": "there is no such entry"}
_SUBJECT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MOST_LETTERS = 200
SHA256 = r"[0-9a-f]{64}"
"""A digest, or a public key, as text."""


class Strict(BaseModel):
    """Base of every signed document: no coercion, no unknown field, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Document = TypeVar("Document", bound=Strict)


class Statement(NamedTuple):
    """What a statement says, before its predicate is understood."""

    subjects: dict[str, str]
    predicate: dict[str, Any]


def build(predicate_type: str, subjects: Mapping[str, str], predicate: Strict) -> bytes:
    """Serialise a statement about subjects (name to sha256); equal input gives equal bytes."""
    return strict_json.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": subjects[name]}} for name in sorted(subjects)],
            "predicateType": predicate_type,
            "predicate": predicate.model_dump(mode="json"),
        }
    )


def parse(payload: bytes, predicate_type: str, most: int = strict_json.MAX_BYTES) -> Statement:
    """Read a statement of one type and so many bytes at most (`ENVELOPE_SCHEMA` or `UNSUPPORTED_STATEMENT`)."""
    value = strict_json.loads(payload, what="The statement", max_bytes=most)
    if not isinstance(value, dict) or set(value) != {"_type", "subject", "predicateType", "predicate"}:
        raise Refused(Code.ENVELOPE_SCHEMA, "The payload is not an in-toto statement.")
    if value["_type"] != STATEMENT_TYPE or value["predicateType"] != predicate_type:
        raise Refused(Code.UNSUPPORTED_STATEMENT, f"Expected a statement of type {predicate_type}.")
    if not isinstance(value["predicate"], dict):
        raise Refused(Code.ENVELOPE_SCHEMA, "The statement's predicate is not an object.")
    return Statement(_subjects(value["subject"]), value["predicate"])


def read(document: type[Document], value: Any, *, what: str, code: Code = Code.SPEC_INVALID) -> Document:
    """Check a parsed JSON value against its schema, strictly.

    Raises:
        Refused: The given code, with the place and reason of the first fault.
    """
    try:
        return document.model_validate_json(strict_json.dumps(value))
    except ValidationError as error:
        place, reason = first_invalid(error)
        raise Refused(code, f"{what}: {place or 'document'}: {reason}.") from error


def first_invalid(error: ValidationError) -> tuple[str, str]:
    """Say where a document, or a file of settings, breaks its schema first, and how.

    Returns:
        The dotted place, and the reason without a full stop; both may quote the document, escaped and cut.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    reason = _PLAIN_REASONS.get(first["type"], first["msg"].removeprefix("Value error, ").rstrip("."))
    place = ".".join(str(part) for part in first["loc"])
    return _quoted(place), _quoted(reason)


def _quoted(text: str) -> str:
    return text[:_MOST_LETTERS].encode("unicode_escape").decode()


def is_sha256(text: str) -> bool:
    """Tell whether a text is a digest; nothing else from outside may become a path or a query."""
    return re.fullmatch(SHA256, text) is not None


def _subjects(entries: Any) -> dict[str, str]:
    if not isinstance(entries, list) or not entries:
        raise Refused(Code.ENVELOPE_SCHEMA, "The statement names no subject.")
    subjects: dict[str, str] = {}
    for entry in entries:
        match entry:
            case {"name": str(name), "digest": {"sha256": str(digest)}} if (
                len(entry) == 2  # noqa: PLR2004 - exactly these two fields
                and len(entry["digest"]) == 1
                and _SUBJECT_NAME.fullmatch(name)
                and is_sha256(digest)
                and name not in subjects
            ):
                subjects[name] = digest
            case _:
                raise Refused(Code.ENVELOPE_SCHEMA, "A subject needs a plain, unique name and one sha256 digest.")
    return subjects
