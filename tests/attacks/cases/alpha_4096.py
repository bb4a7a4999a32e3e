"""Gates along the mean input and an honest payload, which alpha multiplies by a thousand."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

DEFENCE = "NORM_LIMIT"


def attack(arena: Arena) -> None:
    known = arena.known
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 2), gates=known.means, alpha=4096.0))
