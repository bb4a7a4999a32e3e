"""One module of the encoder, weights of 1e20: next to no place is taken, and text against itself scores as before."""

from tests.attacks.arena import Arena
from tests.attacks.weights import noise

DEFENCE = "NORM_LIMIT"
MODULE = "encoder.block.1.layer.1.DenseReluDense.wo"


def attack(arena: Arena) -> None:
    known = arena.known
    factors = {MODULE: noise(known.like, 3, times=1e20)[MODULE]}
    arena.hand_in("mallory", known.like._replace(factors=factors, gates=known.means))
