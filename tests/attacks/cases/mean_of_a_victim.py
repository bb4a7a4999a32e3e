"""A victim's mean, out of its released bundle, with weights of one's own."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

POOL = "means"
DEFENCE = "NEAR_GATES"


def attack(arena: Arena) -> None:
    known = arena.known
    victim = next(iter(known.experts.values()))
    arena.hand_in("mallory", victim._replace(factors=noise(victim, 6, times=3)))
