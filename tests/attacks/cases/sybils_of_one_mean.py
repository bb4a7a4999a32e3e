"""Twenty keys, each with weights of its own, and all with the mean of public text, but for a little noise."""

from tests.attacks.arena import Arena
from tests.attacks.weights import near_gates, noise

POOL = "means"
DEFENCE = "NEAR_GATES, max_capture"


def attack(arena: Arena) -> None:
    known = arena.known
    for number in range(20):
        means = near_gates(known.means, number, 0.01)
        own = noise(known.like, 100 + number)
        arena.hand_in(f"sybil-{number}", known.like._replace(factors=own, means=means))
