"""Another's expert times 1.0001, so that no byte is the same, under a key and a name of one's own."""

from tests.attacks.arena import Arena
from tests.attacks.weights import scaled

DEFENCE = "COPY_OF"


def attack(arena: Arena) -> None:
    arena.hand_in("mallory", scaled(arena.known.like, 1.0001))
