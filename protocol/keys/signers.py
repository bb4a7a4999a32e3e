"""Keys behind a signer: who signs is named by a URI of securesystemslib, and the public half says who it must be.

Of its schemes these sign with Ed25519: `file2` (a file), `hv` (HashiCorp Vault's transit engine). Its signer for tokens
does not, so `pkcs11` is ours.
"""

import os
from collections.abc import Mapping

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Key, SecretsHandler, Signature, Signer

from protocol.errors import Code, Refused, Unavailable
from protocol.keys import pkcs11
from protocol.keys.passphrase import PASSPHRASE_VARIABLE, Ask, ask_on_terminal
from protocol.signing import Identity, PublicKey

SIGNER_FOR_URI_SCHEME.setdefault(pkcs11.SCHEME, pkcs11.TokenSigner)
Signers = Mapping[str, str]
"""URIs of signers by the public half of their key, 64 hexadecimal digits."""


def open_signer(uri: str, public: PublicKey, ask: Ask = ask_on_terminal) -> Identity:
    """Reach a key by its signer's URI; a PIN comes from the environment, or from a person.

    Raises:
        Refused: `SETTINGS_INVALID` for a URI of no known form, or one that needs what is not installed, or `KEY_TYPE`
            for a key that is no Ed25519 key or not the one that is named.
    """
    told: dict[str, str] = {}

    def secret(name: str) -> str:
        if name not in told:
            given = os.environ.get(PASSPHRASE_VARIABLE) or ask(f"{name} for {uri}: ")
            if given is None:
                hint = f"Give it in {PASSPHRASE_VARIABLE}."
                raise Refused(Code.PASSPHRASE, f"The signer {uri} needs a {name}.", hint)
            told[name] = given
        return told[name]

    try:
        signer = Signer.from_priv_key_uri(uri, public.sslib, secret)
    except Exception as error:  # whatever a signer's library raises
        raise Refused(
            Code.SETTINGS_INVALID,
            f"The signer {uri} of key {public.hex[:16]} cannot be used: {_why(error)}.",
            f"Use one of {', '.join(sorted(SIGNER_FOR_URI_SCHEME))} that knows Ed25519, by a URI as its maker has it.",
        ) from error
    return Identity(_Checked(signer, uri, public))


class _Checked(Signer):
    """A signer whose every signature is verified, and whose failures are told in codes of ours."""

    def __init__(self, signer: Signer, uri: str, public: PublicKey) -> None:
        self._signer, self._uri, self._public = signer, uri, public

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "Signer":
        """Not reached by a URI: it stands around those that are."""
        raise NotImplementedError

    @property
    def public_key(self) -> Key:
        """The public half, as it was named."""
        return self._public.sslib

    def sign(self, payload: bytes) -> Signature:
        """Sign.

        Raises:
            Refused: `SETTINGS_INVALID` for what is not installed, `PASSPHRASE` without a PIN, or `KEY_TYPE` for
                another key than was named.
            Unavailable: `BUSY` if the signer does not sign.
        """
        try:
            signature = self._signer.sign(payload)
        except Refused:
            raise
        except UnsupportedLibraryError as error:
            raise Refused(Code.SETTINGS_INVALID, f"The signer {self._uri} cannot be used: {_why(error)}.") from error
        except Exception as error:  # whatever a token's or a cloud's library raises
            what = f"The signer {self._uri} of key {self._public.hex[:16]} does not sign: {_why(error)}."
            raise Unavailable(
                Code.BUSY, what, "See that it is there and that its PIN is right, and try again."
            ) from error
        bare = bytes.fromhex(signature.signature)
        if not self._public.has_signed(payload, bare):
            what = f"The signer {self._uri} signs with another key than {self._public.hex[:16]}."
            raise Refused(Code.KEY_TYPE, what, "Correct the public half or the URI in the settings.")
        return Signature(self._public.keyid, signature.signature)


def _why(error: Exception) -> str:
    return (str(error).rstrip(".") or type(error).__name__).replace("\n", " ")[:200]
