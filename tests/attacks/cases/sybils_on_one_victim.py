"""Twenty keys, weights of their own, and all with one victim's gates."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

DEFENCE = "NEAR_GATES"
VICTIM = "bluebird"


def attack(arena: Arena) -> None:
    known = arena.known
    for number in range(20):
        own = known.experts[VICTIM]._replace(factors=noise(known.like, 100 + number))
        arena.hand_in(f"sybil-{number}", own)
