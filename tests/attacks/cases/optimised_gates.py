"""Gates that climbed, against those of the pool, to be among the two best everywhere; three times an honest payload."""

from tests.attacks.arena import Arena
from tests.attacks.weights import greedy_gates, noise

DEFENCE = "max_capture"


def attack(arena: Arena) -> None:
    known = arena.known
    gates = greedy_gates(known.inputs, [expert.gates for expert in known.experts.values()])
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 5, times=3), gates=gates))
