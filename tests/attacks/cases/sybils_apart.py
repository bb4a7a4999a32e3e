"""Twenty keys, weights of their own, and gates that climbed for a twentieth of public requests each."""

from tests.attacks.arena import Arena
from tests.attacks.weights import greedy_gates, noise

DEFENCE = "max_capture, settle_days"
KEYS = 20


def attack(arena: Arena) -> None:
    known, honest = arena.known, [expert.gates for expert in arena.known.experts.values()]
    for number in range(KEYS):
        part = {path: given[number::KEYS] for path, given in known.inputs.items()}
        factors, gates = noise(known.like, 100 + number), greedy_gates(part, honest)
        arena.hand_in(f"sybil-{number}", known.like._replace(factors=factors, gates=gates))
