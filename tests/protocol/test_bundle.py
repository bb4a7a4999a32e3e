import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from protocol import bundle, statement
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BUNDLE_TYPE, CARD, ENVELOPE, FILES, GATES, SPEC, Bundle
from protocol.errors import Code, Refused
from protocol.signing import Identity, Signed
from protocol.spec import ExpertSpec
from protocol.statement import Strict
from tests.protocol.samples import CONTRIBUTOR, STRANGER, expert, unsigned
from tests.protocol.strategies import changed_json, many, mutations


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle.pack(unsigned(tmp_path_factory.mktemp("bundle") / "one"), expert(), CONTRIBUTOR)


@pytest.fixture
def folder(packed: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed.folder, tmp_path / "bundle"))


def refusal(folder: Path) -> Refused:
    with pytest.raises(Refused) as refused:
        bundle.open_bundle(folder)
    assert len(refused.value.message) < 500
    return refused.value


class Raw(Strict):
    """A predicate that says whatever a test wants."""

    spec: Any
    sizes: Any


def signed(packed: Bundle, signer: Identity = CONTRIBUTOR, **changes: Any) -> bytes:
    """The envelope of a contributor who signs something else than `pack` would."""
    subjects = {name: file.sha256 for name, file in packed.manifest.files.items()}
    sizes = {name: file.size for name, file in packed.manifest.files.items()}
    predicate = Raw(spec=changes.get("spec", packed.spec), sizes=sizes | changes.get("sizes", {}))
    return signer.sign(statement.build(BUNDLE_TYPE, subjects | changes.get("subjects", {}), predicate))


def manifest_refusal(envelope: bytes) -> Refused:
    with pytest.raises(Refused) as refused:
        bundle.read_manifest(envelope)
    assert len(refused.value.message) < 500
    return refused.value


# Laws.


def test_what_is_packed_opens(packed: Bundle) -> None:
    again = bundle.open_bundle(packed.folder)
    assert again == packed
    assert again.spec == expert()
    assert again.manifest.signer == CONTRIBUTOR.public
    assert again.digest == Signed.parse((packed.folder / ENVELOPE).read_bytes()).digest
    assert again.manifest.total_bytes == sum((packed.folder / name).stat().st_size for name in FILES)
    assert sorted(path.name for path in packed.folder.iterdir()) == sorted({*FILES, ENVELOPE})


def test_packing_is_deterministic(packed: Bundle, tmp_path: Path) -> None:
    again = bundle.pack(unsigned(tmp_path / "again"), expert(), CONTRIBUTOR)
    for name in (*FILES, ENVELOPE):
        assert (again.folder / name).read_bytes() == (packed.folder / name).read_bytes()


def test_packing_again_is_the_same_bundle(packed: Bundle, folder: Path) -> None:
    assert bundle.pack(folder, expert(), CONTRIBUTOR).digest == packed.digest


def test_identity_ignores_how_the_envelope_is_spelt(packed: Bundle, folder: Path) -> None:
    envelope = json.loads((folder / ENVELOPE).read_bytes())
    (folder / ENVELOPE).write_text(json.dumps(envelope, indent=4) + "\n")
    assert bundle.open_bundle(folder).digest == packed.digest


def test_the_statement_is_in_toto(packed: Bundle) -> None:
    document = json.loads(Signed.parse(packed.manifest.envelope).payload)
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert [subject["name"] for subject in document["subject"]] == sorted(FILES)
    for subject in document["subject"]:
        content = (packed.folder / subject["name"]).read_bytes()
        assert subject["digest"] == {"sha256": hashlib.sha256(content).hexdigest()}
        assert document["predicate"]["sizes"][subject["name"]] == len(content)


@pytest.fixture(scope="module")
def envelope(packed: Bundle) -> bytes:
    return packed.manifest.envelope


def test_only_refusals_come_out_of_mutated_envelopes(packed: Bundle, envelope: bytes) -> None:
    @many
    @given(mutations(envelope) | changed_json(envelope))
    def law(raw: bytes) -> None:
        with contextlib.suppress(Refused):
            assert bundle.read_manifest(raw).digest == packed.digest

    law()


def test_only_refusals_come_out_of_strange_statements_that_are_truly_signed(envelope: bytes) -> None:
    payload = Signed.parse(envelope).payload

    @many
    @given(mutations(payload) | changed_json(payload))
    def law(raw: bytes) -> None:
        try:
            manifest = bundle.read_manifest(CONTRIBUTOR.sign(raw))
        except Refused as refused:
            assert len(refused.message) < 500  # noqa: PT017 - either outcome is right
        else:
            assert all(file.size >= 0 for file in manifest.files.values())
            assert manifest.signer == CONTRIBUTOR.public

    law()


# Tampering.


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_noticed(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    error = refusal(folder)
    assert error.code is Code.DIGEST_MISMATCH
    assert name in error.message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [b"", b"longer"])
def test_another_size_is_noticed(folder: Path, name: str, change: bytes) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content + change if change else content[:-1])
    error = refusal(folder)
    assert error.code is Code.SIZE_MISMATCH
    assert name in error.message


@pytest.mark.parametrize("name", [*FILES, ENVELOPE])
def test_a_missing_file_is_noticed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    error = refusal(folder)
    assert error.code is Code.FILE_MISSING
    assert name in error.message


@pytest.mark.parametrize(
    "name",
    ["adapter_model.bin", "modeling.py", "a.zip", ".hidden", "Readme.md", "spec.json ", "\x1b[2J", ".spec.json.tmp"],
)
def test_an_extra_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).touch()
    error = refusal(folder)
    assert error.code is Code.FILE_NOT_ALLOWED
    assert error.message.isprintable()


def test_an_extra_folder_is_refused(folder: Path) -> None:
    (folder / ".git").mkdir()
    assert refusal(folder).code is Code.FILE_NOT_ALLOWED


@pytest.mark.parametrize("name", [*FILES, ENVELOPE])
def test_a_link_is_refused_even_to_the_right_bytes(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert refusal(folder).code is Code.FILE_NOT_ALLOWED


@pytest.mark.parametrize("name", FILES)
def test_a_folder_or_a_pipe_in_place_of_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refusal(folder).code is Code.FILE_NOT_ALLOWED
    (folder / name).unlink()
    (folder / name).mkdir()
    assert refusal(folder).code is Code.FILE_NOT_ALLOWED


def test_two_files_swapped_are_noticed(folder: Path) -> None:
    (folder / GATES).rename(folder / "x")
    (folder / ADAPTER_WEIGHTS).rename(folder / GATES)
    (folder / "x").rename(folder / ADAPTER_WEIGHTS)
    assert refusal(folder).code is Code.SIZE_MISMATCH


def test_the_envelope_of_another_bundle_is_noticed(folder: Path, tmp_path: Path) -> None:
    other = bundle.pack(unsigned(tmp_path / "other"), expert(name="export"), CONTRIBUTOR)
    shutil.copy(other.folder / ENVELOPE, folder / ENVELOPE)
    error = refusal(folder)
    assert error.code is Code.DIGEST_MISMATCH
    assert SPEC in error.message


def test_an_edited_spec_is_noticed_even_with_its_digest_signed(packed: Bundle, folder: Path) -> None:
    text = (folder / SPEC).read_bytes().replace(b'"expert"', b'"export"')
    (folder / SPEC).write_bytes(text)
    assert refusal(folder).code is Code.DIGEST_MISMATCH
    (folder / ENVELOPE).write_bytes(signed(packed, subjects={SPEC: hashlib.sha256(text).hexdigest()}))
    error = refusal(folder)
    assert error.code is Code.SPEC_INVALID
    assert "differs from the spec" in error.message


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"nonsense", b'{"version":1,"version":1}'])
def test_a_spec_file_that_is_none_is_refused(folder: Path, text: bytes) -> None:
    (folder / SPEC).write_bytes(text)
    with pytest.raises(Refused) as refused:
        bundle.check_spec(folder / SPEC, expert())
    assert refused.value.code is Code.SPEC_INVALID


def test_an_endless_envelope_is_refused_unread(folder: Path) -> None:
    os.truncate(folder / ENVELOPE, 1 << 40)  # a sparse terabyte: reading it would end the test
    assert refusal(folder).code is Code.TOO_LARGE


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).code is Code.FILE_MISSING
    assert refusal(tmp_path / "none").code is Code.FILE_MISSING
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file").code is Code.FILE_MISSING


# What an envelope may say, judged before a byte of the files is there.


def test_another_signer_is_refused(packed: Bundle) -> None:
    assert manifest_refusal(signed(packed, STRANGER)).code is Code.SIGNER_MISMATCH


def test_a_forged_keyid_is_refused(packed: Bundle) -> None:
    document = json.loads(signed(packed, STRANGER))
    document["signatures"][0]["keyid"] = CONTRIBUTOR.public.keyid
    assert manifest_refusal(json.dumps(document).encode()).code is Code.BAD_SIGNATURE


def test_a_strangers_statement_under_the_contributors_name_is_refused(packed: Bundle) -> None:
    spec = packed.spec.model_copy(update={"contributor": STRANGER.public.hex})
    assert manifest_refusal(signed(packed, CONTRIBUTOR, spec=spec)).code is Code.SIGNER_MISMATCH


def test_a_weak_contributor_key_is_refused(packed: Bundle) -> None:
    spec = packed.spec.model_copy(update={"contributor": "01" + "00" * 31})
    assert manifest_refusal(signed(packed, spec=spec)).code is Code.WEAK_KEY


def test_another_statement_is_no_bundle(packed: Bundle) -> None:
    document = json.loads(Signed.parse(packed.manifest.envelope).payload)
    document["predicateType"] = "https://greylag.org/release/v1"
    raw = CONTRIBUTOR.sign(json.dumps(document).encode())
    assert manifest_refusal(raw).code is Code.UNSUPPORTED_STATEMENT


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..", "a\\x", "x\x00"])
def test_a_file_outside_the_folder_cannot_be_named(packed: Bundle, name: str) -> None:
    assert manifest_refusal(signed(packed, subjects={name: "0" * 64})).code is Code.ENVELOPE_SCHEMA
    assert manifest_refusal(signed(packed, sizes={name: 1})).code is Code.SPEC_INVALID


@pytest.mark.parametrize("name", ["adapter_model.bin", "readme.md", "bundle.dsse.json"])
def test_only_the_five_files_can_be_named(packed: Bundle, name: str) -> None:
    assert manifest_refusal(signed(packed, subjects={name: "0" * 64})).code is Code.FILE_NOT_ALLOWED


@pytest.mark.parametrize("name", FILES)
def test_each_of_the_five_files_is_named(packed: Bundle, name: str) -> None:
    document = json.loads(Signed.parse(packed.manifest.envelope).payload)
    document["subject"] = [subject for subject in document["subject"] if subject["name"] != name]
    assert manifest_refusal(CONTRIBUTOR.sign(json.dumps(document).encode())).code is Code.FILE_MISSING
    document = json.loads(Signed.parse(packed.manifest.envelope).payload)
    document["predicate"]["sizes"]["other"] = document["predicate"]["sizes"].pop(name)
    assert manifest_refusal(CONTRIBUTOR.sign(json.dumps(document).encode())).code is Code.FILE_MISSING


@pytest.mark.parametrize("size", [-1, "1", 1.0, True, None, 2**53, 10**400])
def test_a_size_is_a_whole_number(packed: Bundle, size: Any) -> None:
    error = manifest_refusal(signed(packed, sizes={ADAPTER_WEIGHTS: size}))
    assert error.code in {Code.SPEC_INVALID, Code.ENVELOPE_SCHEMA}


def test_negative_sizes_cannot_make_a_large_bundle_look_small(packed: Bundle) -> None:
    error = manifest_refusal(signed(packed, sizes={ADAPTER_WEIGHTS: 1 << 40, CARD: -(1 << 40)}))
    assert error.code is Code.SPEC_INVALID


@pytest.mark.parametrize(("name", "limit"), bundle.MAX_TEXT_BYTES.items())
def test_text_files_are_bounded(packed: Bundle, name: str, limit: int) -> None:
    assert bundle.read_manifest(signed(packed, sizes={name: limit})).files[name].size == limit
    error = manifest_refusal(signed(packed, sizes={name: limit + 1}))
    assert error.code is Code.TOO_LARGE
    assert name in error.message


# Packing.


@pytest.mark.parametrize("name", [ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, GATES])
def test_nothing_unfinished_is_packed(tmp_path: Path, name: str) -> None:
    folder = unsigned(tmp_path / "bundle")
    (folder / name).unlink()
    with pytest.raises(Refused) as refused:
        bundle.pack(folder, expert(), CONTRIBUTOR)
    assert refused.value.code is Code.FILE_MISSING
    assert not (folder / ENVELOPE).exists()


@pytest.mark.parametrize(
    ("spec", "signer", "code"),
    [
        pytest.param(expert(), STRANGER, Code.SIGNER_MISMATCH, id="another key"),
        pytest.param(expert(), CONTRIBUTOR, Code.FILE_NOT_ALLOWED, id="extra file"),
        pytest.param(expert(), CONTRIBUTOR, Code.TOO_LARGE, id="endless card"),
    ],
)
def test_what_would_not_open_is_not_signed(tmp_path: Path, spec: ExpertSpec, signer: Identity, code: Code) -> None:
    folder = unsigned(tmp_path / "bundle")
    if code is Code.FILE_NOT_ALLOWED:
        (folder / "train.jsonl").touch()
    if code is Code.TOO_LARGE:
        (folder / CARD).write_text("x" * ((1 << 18) + 1))
    with pytest.raises(Refused) as refused:
        bundle.pack(folder, spec, signer)
    assert refused.value.code is code
    assert not (folder / ENVELOPE).exists()


def test_a_pack_that_was_killed_is_repeated(tmp_path: Path) -> None:
    folder = unsigned(tmp_path / "bundle")
    for name in (SPEC, ENVELOPE):
        (folder / f".{name}.4711.tmp").write_text("half")
    assert bundle.open_bundle(bundle.pack(folder, expert(), CONTRIBUTOR).folder).spec == expert()


@pytest.mark.parametrize(("name", "count"), [(SPEC, 1), (ENVELOPE, 2)])
def test_a_killed_pack_leaves_no_half_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    calls = 0

    def killed(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            raise OSError(28, "No space left on device")

    before = (folder / name).read_bytes()
    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(OSError, match="No space"):
        bundle.pack(folder, expert(license="mit"), CONTRIBUTOR)
    assert (folder / name).read_bytes() == before
