"""One key that tells the mean of public text, as twenty do in `sybils_of_one_mean`."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

POOL = "means"
DEFENCE = "max_capture"


def attack(arena: Arena) -> None:
    known = arena.known
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 100), means=known.means))
