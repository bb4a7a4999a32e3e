"""The sum of all honest gates, which answers where any of them does, and a payload twenty times an honest one."""

import torch

from router.pool.gate import standardise
from tests.attacks.arena import Arena
from tests.attacks.weights import noise

DEFENCE = "HARMFUL, NORM_UNUSUAL"


def attack(arena: Arena) -> None:
    known = arena.known
    gates = {
        path: torch.stack([standardise(expert.gates[path]) for expert in known.experts.values()]).sum(0)
        for path in known.like.factors
    }
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 4, times=20), gates=gates))
