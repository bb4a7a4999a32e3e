"""Keys behind signers: a file by securesystemslib's scheme always, a PKCS#11 token where SoftHSM is installed."""

import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, SSlibKey

from protocol.errors import Code, GreylagError, Refused
from protocol.keys.passphrase import PASSPHRASE_VARIABLE
from protocol.keys.pkcs11 import MODULE_VARIABLE, TokenSigner
from protocol.keys.signers import open_signer
from protocol.log.note import NoteKey, SignatureType, sign_note
from protocol.signing import Identity, PublicKey, Signed

MODULES = [Path("/usr/lib/softhsm/libsofthsm2.so"), *Path("/usr/lib").glob("*/softhsm/libsofthsm2.so")]
PIN = "4711"


def nobody(_: str) -> None:
    return None


def check_signs(identity: Identity) -> None:
    """See that it signs envelopes and notes, and keeps its private half to itself."""
    assert Signed.parse(identity.sign(b"{}")).verify(identity.public) == b"{}"
    twice = Identity.generate().countersign(Signed.parse(identity.sign(b"{}")))
    assert Signed.parse(twice).verify(identity.public) == b"{}"
    sign_note("log\n1\n", "log", identity).verify(NoteKey("log", identity.public, SignatureType.LOG))
    asks: list[Callable[[], bytes]] = [lambda: identity.secret(b"p"), identity.private_bytes]
    for ask in asks:
        with pytest.raises(GreylagError) as refused:
            ask()
        assert refused.value.code is Code.KEY_UNREADABLE


def code(uri: str, public: PublicKey) -> Code:
    with pytest.raises(GreylagError) as refused:
        open_signer(uri, public, nobody).sign(b"{}")
    return refused.value.code


def test_a_file_signs_through_the_library(tmp_path: Path) -> None:
    held = Identity.generate()
    held.save(path := tmp_path / "log.key")
    check_signs(open_signer(f"file2:{path}", held.public))
    other = Identity.generate().public
    assert code(f"file2:{path}", other) is Code.SETTINGS_INVALID, "the library compares file and public half"


@pytest.mark.parametrize(
    "uri",
    ["file2:/nowhere/log.key", "hsm:2", "nothing:1", "", "pkcs11:token=t", "pkcs11:object=a;object=b",
     "pkcs11:object=a?pin-value=1", "pkcs11:object=", "hv:pool/1", "tkey:?digest=12"],
)  # fmt: skip
def test_what_cannot_sign_is_a_sentence(uri: str) -> None:
    assert code(uri, Identity.generate().public) is Code.SETTINGS_INVALID


class Fickle(CryptoSigner):
    """Signs with another key, or not at all."""

    away = False

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: object, secrets_handler: object = None) -> "Fickle":
        return cls(CryptoSigner.generate_ed25519()._private_key)

    def sign(self, payload: bytes) -> object:  # type: ignore[override] # raises, or delegates
        if self.away:
            raise ConnectionError("no route to host")
        return super().sign(payload)


def test_another_key_and_an_absent_signer_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "fickle", Fickle)
    assert code("fickle:", Identity.generate().public) is Code.KEY_TYPE
    monkeypatch.setattr(Fickle, "away", True)
    assert code("fickle:", Identity.generate().public) is Code.BUSY
    refusal = Refused(Code.PASSPHRASE, "Nobody tells the PIN.")
    monkeypatch.setattr(Fickle, "sign", lambda *_: (_ for _ in ()).throw(refusal))
    assert code("fickle:", Identity.generate().public) is Code.PASSPHRASE, "what is a refusal already stays one"


def test_a_token_without_its_library_or_module_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    public = Identity.generate().public
    assert TokenSigner.from_priv_key_uri("pkcs11:object=log", public.sslib).public_key == public.sslib
    monkeypatch.delenv(MODULE_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "pkcs11", SimpleNamespace(
        KeyType=None, Mechanism=None, ObjectClass=None,
        exceptions=SimpleNamespace(PinIncorrect=KeyError, PinLocked=KeyError, PinInvalid=KeyError),
    ))  # fmt: skip
    assert code("pkcs11:object=log", public) is Code.BUSY
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    assert code("pkcs11:object=log", public) is Code.SETTINGS_INVALID


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, PublicKey]]:
    """A SoftHSM token with an Ed25519 key that was made inside it: the URI without a PIN, and the public half."""
    pkcs11 = pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")
    module = next((path for path in MODULES if path.exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM2 is not installed")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (config := folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    label = f"greylag-{secrets.token_hex(4)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(config))
        make = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", PIN, "--pin", PIN]
        subprocess.run(make, check=True, timeout=60, capture_output=True)
        library = pkcs11.lib(str(module))
        with suppress(pkcs11.PKCS11Error):
            library.reinitialize()
        with library.get_token(token_label=label).open(user_pin=PIN, rw=True) as session:
            curve = pkcs11.util.ec.encode_named_curve_parameters("1.3.101.112")
            domain = session.create_domain_parameters(
                pkcs11.KeyType.EC_EDWARDS, {pkcs11.Attribute.EC_PARAMS: curve}, local=True
            )
            made = pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN
            public, _ = domain.generate_keypair(mechanism=made, store=True, label="log", id=b"\x01")
            raw = public[pkcs11.Attribute.EC_POINT][-32:]
        yield f"pkcs11:token={label};object=log?module-path={module}", PublicKey(raw)


def test_a_token_signs(token: tuple[str, PublicKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, public = token
    (pin := tmp_path / "pin").write_text(f"{PIN}\n")
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    check_signs(open_signer(f"{uri}&pin-source=file:{pin}", public, nobody))
    check_signs(open_signer(uri.replace("object=log", "id=%01"), public, lambda _: PIN))
    assert code(uri, public) is Code.PASSPHRASE
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PIN)
    check_signs(open_signer(uri, public, nobody))
    assert code(uri, Identity.generate().public) is Code.KEY_TYPE
    assert code(uri.replace("object=log", "object=none"), public) is Code.BUSY
    assert code(uri.replace("token=", "token=no-"), public) is Code.BUSY
    assert code(f"{uri.partition('?')[0]}?module-path=/nowhere.so", public) is Code.BUSY


def test_a_token_whose_pin_nobody_tells_signs_nothing(token: tuple[str, PublicKey]) -> None:
    uri, public = token
    with pytest.raises(ValueError, match="nobody tells its PIN"):
        TokenSigner.from_priv_key_uri(uri, public.sslib).sign(b"{}")


def test_a_wrong_pin_is_tried_once(token: tuple[str, PublicKey], monkeypatch: pytest.MonkeyPatch) -> None:
    uri, public = token
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "0815")
    wrong = open_signer(uri, public, nobody)
    for _ in range(2):
        with pytest.raises(GreylagError) as refused:
            wrong.sign(b"{}")
    assert "not tried again" in refused.value.message
    assert SSlibKey.from_dict(public.keyid, wrong.public.sslib.to_dict()) == public.sslib
