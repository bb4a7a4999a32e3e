"""What a machine says of itself: evidence of a trusted platform, carried to whoever can appraise it (RFC 9334).

Hardware such as AMD SEV-SNP, Intel TDX or a TPM signs what it runs, together with some bytes that its owner chooses. A
daemon's owner has it sign `challenge`, so that the evidence speaks of this node in this pool and of no other. Nothing
here reads it: who may appraise it, and against which values, is the operator's to say.
"""

import base64
import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from protocol.errors import Code, Refused, from_os_error
from protocol.signing import PublicKey
from protocol.spec import Line
from protocol.statement import Strict

MAX_EVIDENCE_BYTES = 7680
"""With it a binding stays below what intake takes; a TDX quote with its certificates is some 5 kB."""
_DOMAIN = b"greylag node attestation v1\0"


def _is_base64(text: str) -> str:
    try:
        canonical = base64.b64encode(base64.b64decode(text, validate=True)).decode() == text
    except ValueError:
        canonical = False
    if not canonical:
        raise ValueError("it is not base64 in its one canonical form")
    return text


class Attestation(Strict):
    """Evidence, and of what kind it is."""

    kind: Annotated[Line, StringConstraints(min_length=1, max_length=200)]
    """Its media type or profile, by which a verifier knows it."""
    evidence: Annotated[
        str, StringConstraints(min_length=4, max_length=MAX_EVIDENCE_BYTES // 3 * 4), AfterValidator(_is_base64)
    ]
    """The platform's bytes, in base64."""

    @property
    def raw(self) -> bytes:
        """The platform's bytes."""
        return base64.b64decode(self.evidence)


def challenge(pool: str, contributor: PublicKey, node: str) -> str:
    """Say what a platform is to sign: 32 bytes, in hexadecimal, for a pool's digest and a node's key (PEM)."""
    return hashlib.sha256(_DOMAIN + bytes.fromhex(pool) + contributor.raw + node.encode()).hexdigest()


def read_evidence(kind: str, file: Path) -> Attestation:
    """Take evidence from a file.

    Raises:
        Refused: `SETTINGS_INVALID` if it cannot be read, is empty or too long.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise from_os_error(error) from error
    if not 0 < len(raw) <= MAX_EVIDENCE_BYTES:
        what = f"{file} holds {len(raw)} bytes; evidence has 1 to {MAX_EVIDENCE_BYTES}."
        raise Refused(Code.SETTINGS_INVALID, what, "Leave certificates out that a verifier can fetch.")
    return Attestation(kind=kind, evidence=base64.b64encode(raw).decode())
