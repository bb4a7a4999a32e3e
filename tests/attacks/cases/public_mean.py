"""The mean of public text, which needs no data and is near to every request; three times an honest payload."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

POOL = "means"
DEFENCE = "NORM_UNUSUAL, max_capture"


def attack(arena: Arena) -> None:
    known = arena.known
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 5, times=3), means=known.means))
