"""One spelling of what a bundle says: others are read, and not taken in."""

import json
from pathlib import Path

import pytest

from protocol import bundle
from protocol.bundle import ENVELOPE, SPEC, Bundle
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.signing import Signed
from tests.protocol.samples import CONTRIBUTOR, expert, unsigned


@pytest.fixture
def packed(tmp_path: Path) -> Bundle:
    return bundle.pack(unsigned(tmp_path / "one"), expert(), CONTRIBUTOR)


@pytest.fixture
def envelope(packed: Bundle) -> bytes:
    return packed.manifest.envelope


def spelt(payload: bytes, how: str) -> bytes:
    """Write the same statement another way."""
    value = json.loads(payload)
    if how == "padded":
        return payload.replace(b",", b"," + b" " * 1000, 1)
    if how == "unsorted":
        return json.dumps(dict(reversed(value.items())), separators=(",", ":")).encode()
    if how == "whole number":
        return payload.replace(b'"alpha":4.0', b'"alpha":4')
    del value["predicate"]["spec"]["joint"]
    return strict_json.dumps(value)


@pytest.mark.parametrize("how", ["padded", "unsorted", "whole number", "without a default"])
def test_another_spelling_of_a_statement_is_read_and_not_taken_in(envelope: bytes, how: str) -> None:
    manifest = bundle.read_manifest(CONTRIBUTOR.sign(spelt(Signed.parse(envelope).payload, how)))
    with pytest.raises(Refused) as refused:
        bundle.check_canonical(manifest)
    assert refused.value.code is Code.ENVELOPE_SCHEMA


@pytest.mark.parametrize("how", ["padded", "second signature"])
def test_another_spelling_of_an_envelope_is_read_and_not_taken_in(envelope: bytes, how: str) -> None:
    fields = json.loads(envelope)
    if how == "second signature":
        fields["signatures"].append(fields["signatures"][0] | {"keyid": "7" * 64})
    manifest = bundle.read_manifest(json.dumps(fields).encode() if how == "padded" else strict_json.dumps(fields))
    with pytest.raises(Refused) as refused:
        bundle.check_canonical(manifest)
    assert refused.value.code is Code.ENVELOPE_SCHEMA


def test_what_is_packed_is_canonical(packed: Bundle) -> None:
    bundle.check_canonical(packed.manifest)


def test_another_spelling_of_the_spec_is_not_taken_in(packed: Bundle) -> None:
    folder = packed.folder
    (folder / SPEC).write_text(json.dumps(json.loads((folder / SPEC).read_bytes()), indent=1))
    manifest = sign_anyway(folder)
    with pytest.raises(Refused) as refused:
        bundle.check_canonical(manifest)
    assert refused.value.code is Code.SPEC_INVALID


def sign_anyway(folder: Path) -> bundle.Manifest:
    """Sign the files of a folder as they are."""
    value = json.loads(Signed.parse((folder / ENVELOPE).read_bytes()).payload)
    for subject in value["subject"]:
        subject["digest"]["sha256"] = bundle.sha256_of(folder / subject["name"])
        value["predicate"]["sizes"][subject["name"]] = (folder / subject["name"]).stat().st_size
    return bundle.read_manifest(CONTRIBUTOR.sign(strict_json.dumps(value)))
