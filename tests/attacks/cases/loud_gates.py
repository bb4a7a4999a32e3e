"""Another's gates times a million, which standardising takes off again, and three times an honest payload."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

DEFENCE = "NEAR_GATES"
VICTIM = "bluebird"


def attack(arena: Arena) -> None:
    known = arena.known
    gates = {path: gate * 1e6 for path, gate in known.experts[VICTIM].gates.items()}
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 21, times=3), gates=gates))
