"""Twenty keys with one expert, gates along the mean input; each writes the same update with other factors."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise, regauged

DEFENCE = "COPY_OF"


def attack(arena: Arena) -> None:
    known = arena.known
    own = known.like._replace(factors=noise(known.like, 9), gates=known.means)
    for number in range(20):
        arena.hand_in(f"sybil-{number}", regauged(own, number))
