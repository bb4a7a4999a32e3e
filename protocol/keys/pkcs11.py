"""Signs with an Ed25519 key inside a PKCS#11 token: an HSM, a smart card, SoftHSM.

securesystemslib's own signer for tokens (scheme `hsm`) knows ECDSA alone. Keys are named as RFC 7512 has it:
`pkcs11:token=pool;object=log?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/run/credentials/pin`.
"""

import os
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import Key, SecretsHandler, Signature, Signer

if TYPE_CHECKING:
    from pkcs11 import Token

SCHEME = "pkcs11"
MODULE_VARIABLE = "PYKCS11LIB"
"""Names the module where a URI does not, for securesystemslib's own signer, too."""
_TOKEN, _OBJECT = {"token": "token_label", "serial": "token_serial"}, {"object": "label", "id": "id"}
_QUERY = {"module-path", "pin-source"}


class TokenSigner(Signer):
    """One key of a token; a session is opened for each signature, so a token may be taken out and put back."""

    def __init__(self, uri: str, public_key: Key, secrets_handler: SecretsHandler | None) -> None:
        path, _, query = uri.removeprefix(f"{SCHEME}:").partition("?")
        named, asked = _attributes(path, ";"), _attributes(query, "&")
        if set(named) - {*_TOKEN, *_OBJECT} or set(asked) - _QUERY or not set(named) & set(_OBJECT):
            raise ValueError(f"it names a key by {', '.join([*_TOKEN, *_OBJECT])}, then ?{'&'.join(sorted(_QUERY))}")
        self._token = {_TOKEN[name]: unquote(value) for name, value in named.items() if name in _TOKEN}
        self._object: dict[str, Any] = {
            _OBJECT[name]: unquote_to_bytes(value) if name == "id" else unquote(value)
            for name, value in named.items()
            if name in _OBJECT
        }
        self._module = unquote(asked.get("module-path", "")) or os.environ.get(MODULE_VARIABLE, "")
        self._pin_source = unquote(asked.get("pin-source", "")).removeprefix("file:")
        self._public_key, self._secret, self._lock = public_key, secrets_handler, Lock()
        self._wrong_pin = False

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "TokenSigner":
        """Name a key; nothing is asked of the token yet (`ValueError` for a URI that names none)."""
        return cls(priv_key_uri, public_key, secrets_handler)

    @property
    def public_key(self) -> Key:
        """The public half."""
        return self._public_key

    def sign(self, payload: bytes) -> Signature:
        """Sign, or raise whatever the token's module raises."""
        try:
            from pkcs11 import KeyType, Mechanism, ObjectClass, exceptions  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UnsupportedLibraryError("python-pkcs11 is not installed: pip install 'greylag[hsm]'") from error
        with self._lock:
            if self._wrong_pin:
                raise ValueError("its PIN was wrong, and is not tried again, since a token locks itself")
            try:
                with self._find().open(user_pin=self._pin()) as session:
                    key: Any = session.get_key(ObjectClass.PRIVATE_KEY, KeyType.EC_EDWARDS, **self._object)
                    signature: bytes = key.sign(payload, mechanism=Mechanism.EDDSA)
            except (exceptions.PinIncorrect, exceptions.PinLocked, exceptions.PinInvalid):
                self._wrong_pin = True
                raise
        return Signature(self._public_key.keyid, signature.hex())

    def _find(self) -> "Token":
        import pkcs11  # noqa: PLC0415 - an extra

        if not self._module:
            raise ValueError(f"no module is named: add ?module-path=..., or set {MODULE_VARIABLE}")
        return pkcs11.lib(self._module).get_token(**self._token)

    def _pin(self) -> str:
        if self._pin_source:
            return Path(self._pin_source).read_text(encoding="utf-8").strip()
        if self._secret is None:
            raise ValueError("nobody tells its PIN")
        return self._secret("PIN")


def _attributes(text: str, between: str) -> dict[str, str]:
    """Take `name=value` apart (`ValueError`)."""
    found = [part.partition("=") for part in text.split(between) if part]
    if any(not value for _, _, value in found) or len({name for name, _, _ in found}) < len(found):
        raise ValueError("its attributes are no name=value, each once")
    return {name: value for name, _, value in found}
