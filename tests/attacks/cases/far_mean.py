"""The mean of all others told thirty times as large, to outweigh them; three times an honest payload."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

POOL = "means"
DEFENCE = "max_capture"


def attack(arena: Arena) -> None:
    known = arena.known
    told = [expert.means for expert in known.experts.values() if expert.means]
    means = {path: 30 * sum((each[path] for each in told), 0 * mean) / len(told) for path, mean in told[0].items()}
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 8, times=3), means=means))
