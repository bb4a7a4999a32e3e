"""Twenty keys, each with another's expert and one per cent of noise on it."""

from tests.attacks.arena import Arena
from tests.attacks.weights import disturbed

DEFENCE = "COPY_OF"


def attack(arena: Arena) -> None:
    for number in range(20):
        arena.hand_in(f"sybil-{number}", disturbed(arena.known.like, number, 0.01))
