import base64
from pathlib import Path

import pytest
from pydantic import ValidationError

from protocol.errors import Code, Refused
from protocol.fleet.attestation import MAX_EVIDENCE_BYTES, Attestation, challenge, read_evidence
from protocol.fleet.node_key import NodeKey, bind, read_binding
from protocol.signing import Identity

POOL, NOW = "1" * 64, "2026-11-22T12:00:00Z"


def test_evidence_comes_through_a_binding_as_it_was(tmp_path: Path, identity: Identity) -> None:
    (file := tmp_path / "report.bin").write_bytes(raw := bytes(range(256)) * (MAX_EVIDENCE_BYTES // 256))
    shown = read_evidence("application/x-sev-snp", file)
    envelope = bind(POOL, identity, NodeKey.generate(), NOW, shown)
    assert len(envelope) <= 1 << 14, "what intake takes"
    found = read_binding(envelope).attestation
    assert found is not None
    assert (found.kind, found.raw) == ("application/x-sev-snp", raw)


@pytest.mark.parametrize("size", [0, MAX_EVIDENCE_BYTES + 1])
def test_what_no_binding_holds_is_refused(tmp_path: Path, size: int) -> None:
    (file := tmp_path / "report.bin").write_bytes(bytes(size))
    with pytest.raises(Refused) as refused:
        read_evidence("x", file)
    assert refused.value.code is Code.SETTINGS_INVALID
    with pytest.raises(Refused) as refused:
        read_evidence("x", tmp_path / "none")
    assert refused.value.code is Code.SETTINGS_INVALID


@pytest.mark.parametrize("evidence", ["AAB=", "AAA", "A A A", "____", "A" * (MAX_EVIDENCE_BYTES // 3 * 4 + 4)])
def test_evidence_has_one_spelling_and_an_end(evidence: str) -> None:
    with pytest.raises(ValidationError):
        Attestation(kind="x", evidence=evidence)
    assert Attestation(kind="x", evidence=base64.b64encode(b"fine").decode()).raw == b"fine"


def test_a_challenge_is_one_nodes_alone(identity: Identity) -> None:
    node, other = NodeKey.generate().public, NodeKey.generate().public
    asked = {
        challenge(POOL, identity.public, node), challenge("2" * 64, identity.public, node),
        challenge(POOL, Identity.generate().public, node), challenge(POOL, identity.public, other),
    }  # fmt: skip
    assert len(asked) == 4
    assert challenge(POOL, identity.public, node) in asked
