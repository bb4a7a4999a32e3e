"""Twenty keys, weights of their own, and gates along the mean input, each with a tenth of noise on it."""

from tests.attacks.arena import Arena
from tests.attacks.weights import near_gates, noise

DEFENCE = "NEAR_GATES, max_capture"


def attack(arena: Arena) -> None:
    known = arena.known
    for number in range(20):
        factors, gates = noise(known.like, 100 + number), near_gates(known.means, number, 0.1)
        arena.hand_in(f"sybil-{number}", known.like._replace(factors=factors, gates=gates))
