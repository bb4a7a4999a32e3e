"""A victim's own gates, nearly half of the victim's update taken off, and enough of one's own to be no copy."""

from tests.attacks.arena import Arena
from tests.attacks.weights import undoing

DEFENCE = "NEAR_GATES"
VICTIM = "bluebird"


def attack(arena: Arena) -> None:
    arena.hand_in("mallory", undoing(arena.known.experts[VICTIM], 23, 0.45))
