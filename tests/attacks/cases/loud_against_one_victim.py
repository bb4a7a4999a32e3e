"""A victim's own gates, and a payload twenty times as large as an honest one."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

DEFENCE = "HARMFUL, NORM_UNUSUAL"
VICTIM = "bluebird"


def attack(arena: Arena) -> None:
    known = arena.known
    arena.hand_in("mallory", known.experts[VICTIM]._replace(factors=noise(known.like, 13, times=20)))
