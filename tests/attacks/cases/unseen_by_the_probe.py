"""Gates that climbed to win nothing of the operator's public rows, and all that users of contributors ask."""

from deploy.demo import world
from tests.attacks.arena import Arena
from tests.attacks.weights import inputs_of, noise, two_faced_gates

DEFENCE = ""


def attack(arena: Arena) -> None:
    known = arena.known
    asked = [example for name in world.CONTRIBUTORS for example in world.train(name, 5, 41)]
    gates = two_faced_gates(
        inputs_of(world.WORDS.rows), inputs_of(asked), [expert.gates for expert in known.experts.values()]
    )
    arena.hand_in("mallory", known.like._replace(factors=noise(known.like, 22, times=3), gates=gates))
