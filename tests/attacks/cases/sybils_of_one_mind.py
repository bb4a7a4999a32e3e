"""Twenty keys, each with weights of its own, and all with gates along the mean input."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

DEFENCE = "NEAR_GATES, max_capture"


def attack(arena: Arena) -> None:
    known = arena.known
    for number in range(20):
        arena.hand_in(
            f"sybil-{number}", known.like._replace(factors=noise(known.like, 100 + number), gates=known.means)
        )
