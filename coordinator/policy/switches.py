"""What an operator can shut at once, and open again."""

from collections.abc import Mapping
from enum import StrEnum

from protocol.errors import Code, Unavailable


class Switch(StrEnum):
    """What can be shut."""

    INTAKE = "intake"
    """Nobody enrols, and nothing is taken in; what has arrived goes on."""
    POOL = "pool"
    """Besides, nothing is let in or released that was not yet: yanks and renewals go on."""
    REGISTRY = "registry"
    """Nothing at all is written; what is there is read and handed out."""


def check_open(thrown: Mapping[Switch, str], *switches: Switch) -> None:
    """Let nobody through while one of some switches is thrown (`CLOSED`)."""
    for switch in switches:
        if switch in thrown:
            what = f"The operator has closed the {switch} for now: {thrown[switch]}"
            raise Unavailable(Code.CLOSED, what, "Try again later; what arrived is kept for a while.")
