"""One key, gates along the mean input and an honest payload: what the twenty of one mind are held against."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

DEFENCE = "max_capture"


def attack(arena: Arena) -> None:
    known = arena.known
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 100), gates=known.means))
