"""model.sig: what the library model-signing writes is read, what is written is what it writes, and lies are refused."""

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from protocol.errors import Code, Refused
from protocol.openssf.model_signature import MODEL_SIGNATURE, ModelSigner, ModelVerifier, sign_model, verify_model
from tests.golden import test_pool

GOLDEN = Path(test_pool.__file__).parent / "model_signing"
"""Signed by the library model-signing 1.1.1; README.md beside it says how."""
SIGNER = ModelSigner.load(GOLDEN / "key.pem")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the golden model."""
    return Path(shutil.copytree(GOLDEN / "model", tmp_path / "model"))


def signed(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a signature as it is, and the statement in it."""
    document = json.loads((folder / MODEL_SIGNATURE).read_bytes())
    return document, json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the owner of the key says, and sign it again."""
    document, said = signed(folder)
    change(said)
    payload = json.dumps(said).encode()
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(SIGNER.sign(payload)).decode()
    (folder / MODEL_SIGNATURE).write_text(json.dumps(document))


def test_what_the_library_signed_is_verified() -> None:
    found = verify_model(GOLDEN / "model", ModelVerifier.load(GOLDEN / "key.pub"))
    assert sorted(found) == ["Zed", "config.json", "sub.txt", "sub/weights.bin"]
    assert found["Zed"] == hashlib.sha256(b"z").hexdigest()


def test_what_is_signed_here_is_what_the_library_writes(model: Path) -> None:
    theirs, said_there = signed(model)
    sign_model(model, SIGNER, name="model")
    ours, said_here = signed(model)
    assert said_there["predicate"]["serialization"].pop("ignore_paths")[0] == MODEL_SIGNATURE
    assert said_here["predicate"]["serialization"].pop("ignore_paths") == [MODEL_SIGNATURE]
    assert said_here == said_there
    for document in (ours, theirs):
        assert document["dsseEnvelope"].pop("payload")
        assert document["dsseEnvelope"]["signatures"][0].pop("sig")
    assert ours == theirs
    assert len(verify_model(model, SIGNER.public)) == 4


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_every_curve_of_the_format_signs(curve: type[ec.EllipticCurve], model: Path, tmp_path: Path) -> None:
    signer = ModelSigner(ec.generate_private_key(curve()))
    sign_model(model, signer, name="a name with spaces, ünd more")
    (tmp_path / "model.pub").write_bytes(signer.public.pem)
    verify_model(model, ModelVerifier.load(tmp_path / "model.pub"))


def test_a_key_is_kept_for_its_owner_alone_and_never_replaced(tmp_path: Path) -> None:
    signer, path = ModelSigner.generate(), tmp_path / "model.key"
    signer.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ModelSigner.load(path).public.pem == signer.public.pem
    with pytest.raises(FileExistsError):
        ModelSigner.generate().save(path)


def flip(folder: Path) -> None:
    (folder / "Zed").write_text("y")


def link(folder: Path) -> None:
    (folder / "Zed").unlink()
    (folder / "Zed").symlink_to("config.json")


def under_git(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "hook").write_text("run me")


def bit_of_the_payload(folder: Path) -> None:
    document, said = signed(folder)
    said["subject"][0]["name"] = "another"
    document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    (folder / MODEL_SIGNATURE).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (flip, Code.DIGEST_MISMATCH),
        (link, Code.FILE_NOT_ALLOWED),
        (under_git, Code.FILE_NOT_ALLOWED),  # the library passes over it, by the signer's own list
        (bit_of_the_payload, Code.BAD_SIGNATURE),
        (lambda it: (it / "new.txt").write_text(""), Code.FILE_NOT_ALLOWED),
        (lambda it: (it / "Zed").rename(it / "zed"), Code.FILE_MISSING),
        (lambda it: (it / "sub.txt").unlink(), Code.FILE_MISSING),
        (lambda it: (it / MODEL_SIGNATURE).unlink(), Code.FILE_MISSING),
        (lambda it: (it / MODEL_SIGNATURE).write_text("{}"), Code.ENVELOPE_SCHEMA),
        (lambda it: (it / MODEL_SIGNATURE).write_text("[" * 99), Code.ENVELOPE_SCHEMA),
    ],
)
def test_a_changed_model_is_refused(model: Path, change: Callable[[Path], object], code: Code) -> None:
    change(model)
    with pytest.raises(Refused) as refused:
        verify_model(model, SIGNER.public)
    assert refused.value.code is code


def shard(said: dict[str, Any]) -> None:
    said["predicate"]["serialization"] |= {"method": "shards", "shard_size": 9}


def twice(said: dict[str, Any]) -> None:
    """Say two things of one file, with a root digest that fits."""
    resources = said["predicate"]["resources"]
    resources.append(resources[0] | {"digest": "0" * 64})
    digests = b"".join(bytes.fromhex(each["digest"]) for each in resources)
    said["subject"][0]["digest"]["sha256"] = hashlib.sha256(digests).hexdigest()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (shard, Code.ENVELOPE_SCHEMA),
        (twice, Code.ENVELOPE_SCHEMA),
        (lambda said: said["predicate"]["resources"].pop(), Code.ENVELOPE_SCHEMA),  # the root digest is of all
        (lambda said: said["subject"].append(said["subject"][0]), Code.ENVELOPE_SCHEMA),
        (lambda said: said.update(predicateType="https://model_signing/Digests/v0.1"), Code.UNSUPPORTED_STATEMENT),
    ],
)
def test_a_signer_who_contradicts_himself_is_refused(
    model: Path, change: Callable[[dict[str, Any]], object], code: Code
) -> None:
    forge(model, change)
    with pytest.raises(Refused) as refused:
        verify_model(model, SIGNER.public)
    assert refused.value.code is code


def test_what_a_later_version_adds_is_passed_over(model: Path) -> None:
    forge(model, lambda said: said["predicate"].update(model_card={"name": "a"}))
    verify_model(model, SIGNER.public)


@pytest.mark.parametrize("hint", ["", SIGNER.public.hint])
def test_another_key_did_not_sign_it(model: Path, hint: str) -> None:
    document, _ = signed(model)
    document["verificationMaterial"]["publicKey"]["hint"] = hint
    (model / MODEL_SIGNATURE).write_text(json.dumps(document))
    verify_model(model, SIGNER.public)
    with pytest.raises(Refused) as refused:
        verify_model(model, ModelSigner.generate().public)
    assert refused.value.code is Code.BAD_SIGNATURE


def test_keys_that_the_format_does_not_take_are_refused(tmp_path: Path) -> None:
    path, plain = tmp_path / "key", (Encoding.PEM, PrivateFormat.PKCS8)
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())):
        path.write_bytes(key.private_bytes(*plain, NoEncryption()))
        with pytest.raises(Refused) as refused:
            ModelSigner.load(path)
        assert refused.value.code is Code.KEY_TYPE
        path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        with pytest.raises(Refused) as refused:
            ModelVerifier.load(path)
        assert refused.value.code is Code.KEY_TYPE
    path.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(*plain, BestAvailableEncryption(b"word")))
    with pytest.raises(Refused) as refused:
        ModelSigner.load(path)
    assert refused.value.code is Code.PASSPHRASE
    ModelSigner.load(path, "word")
    with pytest.raises(Refused) as refused:
        ModelVerifier.load(path)
    assert refused.value.code is Code.KEY_UNREADABLE
