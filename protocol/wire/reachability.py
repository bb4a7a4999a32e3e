"""Why a connection does not come about: gRPC says `UNAVAILABLE` to all of it, the system's own libraries know."""

import socket
import ssl
from pathlib import Path

from protocol.errors import Code, GreylagError, Refused, Unavailable

_LOOK_S = 5.0
"""How long a look may take, in seconds: once for the connection, once for the handshake."""
_OTHER_HOST = ("is for another host name", "Use a name that the certificate holds, or ask the operator for one.")
_OUT_OF_DATE = ("has expired or is not valid yet", "Check this machine's clock; else the operator renews it.")
# X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH, _CERT_NOT_YET_VALID and _CERT_HAS_EXPIRED of OpenSSL.
_FAULTS = {62: _OTHER_HOST, 64: _OTHER_HOST, 9: _OUT_OF_DATE, 10: _OUT_OF_DATE}


def find_fault(address: str, ca: Path | None, *, tls: bool) -> GreylagError | None:
    """Connect once more to `host:port`, over TLS or not, and tell what stands in the way; None if nothing does."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), _LOOK_S) as connection:
            return _wrong_certificate(connection, host, address, ca) if tls else _wrong_scheme(connection, address)
    except socket.gaierror:
        what, hint = f"There is no host by the name of {host}.", "Check the address, and this machine's network."
    except ConnectionRefusedError:
        what, hint = f"Nothing listens at {address}.", "Check the port, and whether the program there runs."
    except OSError as error:
        what = f"{address} does not answer ({error.strerror or 'in time'})."
        hint = "Check the address, and the network and firewalls on the way."
    return Unavailable(Code.UNREACHABLE, what, hint)


def _wrong_scheme(connection: socket.socket, address: str) -> GreylagError | None:
    """Tell a server that speaks TLS from one that does not."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE  # only whether there is one at all
    try:
        _shake_hands(anybody, connection)
    except OSError:  # of which SSLError is one
        return None
    what = f"{address} speaks TLS, and plain text was tried."
    return Refused(Code.UNTRUSTED, what, "Give the operator's CA certificate with --ca.")


def _wrong_certificate(connection: socket.socket, host: str, address: str, ca: Path | None) -> GreylagError | None:
    try:
        _shake_hands(ssl.create_default_context(cafile=ca), connection, host)
    except ssl.SSLCertVerificationError as error:
        what, hint = "is by nobody whom this machine trusts", "Give the operator's CA certificate with --ca."
        if ca is not None:
            what, hint = f"is not by the CA in {ca}", "Ask the operator for the right CA certificate."
        what, hint = _FAULTS.get(error.verify_code, (what, hint))
        return Refused(Code.UNTRUSTED, f"The certificate of {address} {what}.", hint)
    except (ssl.SSLEOFError, ConnectionError):
        return None  # it went away in the middle: a restart, or a proxy with nobody behind it
    except ssl.SSLError:
        hint = "Check the port, and leave --ca out on loopback."
        return Refused(Code.UNTRUSTED, f"{address} does not speak TLS.", hint)
    return None


def _shake_hands(context: ssl.SSLContext, connection: socket.socket, host: str | None = None) -> None:
    with context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False) as wrapped:
        wrapped.do_handshake()
