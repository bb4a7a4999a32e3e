"""What an operator yanked comes back: under another name of the same key, and changed a little under a new key."""

from protocol.signing import Identity
from tests.attacks.arena import Arena
from tests.attacks.weights import noise, scaled

DEFENCE = "KEY_PENDING, COPY_OF"


def attack(arena: Arena) -> None:
    known, identity = arena.known, Identity.generate()
    own = known.like._replace(factors=noise(known.like, 15), gates=known.means)
    first = arena.hand_in("mallory", own, identity)
    arena.work()
    arena.yank(first)
    arena.attempts.clear()
    arena.hand_in("again", own, identity)
    arena.hand_in("changed", scaled(own, 1.0001))
