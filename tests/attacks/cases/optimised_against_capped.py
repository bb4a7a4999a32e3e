"""As optimised below a cap, with three times an honest payload, which is not unusual."""

from tests.attacks.arena import Arena
from tests.attacks.weights import greedy_gates, noise

DEFENCE = "max_capture"


def attack(arena: Arena) -> None:
    known = arena.known
    fair = 2 / (len(known.experts) + 1)
    gates = greedy_gates(known.inputs, [expert.gates for expert in known.experts.values()], wanted=1.5 * fair)
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 6, times=3), gates=gates))
