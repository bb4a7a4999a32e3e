"""A victim's own gates, and the victim's update with its sign turned round: together they come to nothing."""

from tests.attacks.arena import Arena
from tests.attacks.weights import scaled

DEFENCE = "COPY_OF"
VICTIM = "bluebird"


def attack(arena: Arena) -> None:
    arena.hand_in("mallory", scaled(arena.known.experts[VICTIM], -1.0))
