"""Twenty keys with one expert, gates along the mean input; each puts its ranks in another order."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise, permuted

DEFENCE = "COPY_OF"


def attack(arena: Arena) -> None:
    known = arena.known
    own = known.like._replace(factors=noise(known.like, 10), gates=known.means)
    for number in range(20):
        arena.hand_in(f"sybil-{number}", permuted(own, number))
