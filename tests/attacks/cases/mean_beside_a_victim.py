"""A victim's mean with half of another's added to it, and weights as large as honest ones."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

POOL = "means"
DEFENCE = "NEAR_GATES"


def attack(arena: Arena) -> None:
    known = arena.known
    victim, other = [expert.means for expert in known.experts.values() if expert.means][:2]
    means = {path: mean + (other[path] - known.means[path]) / 2 for path, mean in victim.items()}
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 9), means=means))
