"""Gates along the mean input, which take most tokens, and a payload twenty times as large as an honest one."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

DEFENCE = "HARMFUL, NORM_UNUSUAL"


def attack(arena: Arena) -> None:
    known = arena.known
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 1, times=20), gates=known.means))
