"""How far a door that answers over HTTP stands open, and to whom; needs no torch."""

from typing import NamedTuple

import structlog

from protocol.errors import Code, Refused
from protocol.wire.grpc_client import is_loopback
from protocol.wire.grpc_server import Listen, check_listen

_log = structlog.get_logger(__name__)


class Openness(NamedTuple):
    """What an operator allows beyond loopback, with a word each."""

    without_tls: bool = False
    without_keys: bool = False


def check_door(listen: Listen, openness: Openness, *, keys: bool) -> None:
    """Refuse a door that would stand open by mistake, before anything that takes long.

    Args:
        listen: Where it is to listen.
        openness: What may be missing.
        keys: Whether there are users with keys.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    plain = listen.certificate is None and listen.key is None
    if is_loopback(listen.address):
        check_listen(listen)
        return
    if not keys and not openness.without_keys:
        what = f"{listen.address} would answer anybody: there are no users with keys."
        hint = "Add one with greylag-router users add NAME, or give --http-without-keys."
        raise Refused(Code.SETTINGS_INVALID, what, hint)
    if not (plain and openness.without_tls):
        check_listen(listen)  # refuses what is plain
    if plain:
        _log.warning("HTTP WITHOUT TLS: whoever is on the line reads questions, answers and keys", at=listen.address)
    if not keys:
        _log.warning("HTTP WITHOUT KEYS: anybody may ask", at=listen.address)
