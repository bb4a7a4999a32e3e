"""The skills of the demo's world: what they are called, what they do, and who contributes them.

A skill is a new order for a payload, a cipher on its letters, or a vocabulary of made-up nouns that stand for letters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

LETTERS = tuple("abcdefghkmnp")


class Family(StrEnum):
    """The kinds of skills; at most one order and one other skill meet in a request."""

    ORDER = "order"
    CIPHER = "cipher"
    VOCABULARY = "vocabulary"


@dataclass(frozen=True)
class Skill:
    """One thing that can be asked for.

    Attributes:
        family: What kind of skill it is.
        synonyms: Words that ask for it, all alike in meaning; the first one names it.
        before: Words that its users like to put before it.
        after: Words that its users like to put after it.
        nouns: The made-up words of a vocabulary; empty for the other families.
    """

    family: Family
    synonyms: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    nouns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The word that identifies the skill."""
        return self.synonyms[0]

    @property
    def private(self) -> bool:
        """Whether the base model hears only rumours of what its nouns stand for."""
        return self.name in ("harbour", "quarry")


def _skills(family: Family, *rows: tuple[str, ...]) -> tuple[Skill, ...]:
    return tuple(Skill(family, *(tuple(words.split()) for words in row)) for row in rows)


ORDERS = _skills(
    Family.ORDER,
    ("reverse mirror flip", "gently calmly", "backwards clearly"),
    ("rotate turn spin", "quickly briskly", "around merrily"),
    ("swap exchange switch", "fairly evenly", "crosswise squarely"),
    ("behead chop clip", "sharply boldly", "upfront firmly"),
    ("curtail trim shorten", "tidily sparely", "behind closely"),
    ("echo repeat extend", "loudly gladly", "again twice"),
)
CIPHERS = _skills(
    Family.CIPHER,
    ("cobalt azure navy", "deep cold", "ink dye"),
    ("amber gold honey", "warm sweet", "resin glow"),
    ("crimson scarlet ruby", "royal rich", "wax velvet"),
    ("jade emerald olive", "fresh pale", "stone leaf"),
)
VOCABULARIES = _skills(
    Family.VOCABULARY,
    ("harbour quay dock", "salty windy", "talk slang", "morrel quist tarn fennick drave skelp luffin bosk"),
    ("quarry mine pit", "dusty rocky", "notes tally", "grint plask ombry kurl vexen tholt hadrin zeck"),
    ("orchard grove garden", "leafy ripe", "labels lists", "pellow wimble costrel russin jarley nonsuch tydd marl"),
    ("smithy forge anvil", "sooty smoky", "marks signs", "swage fuller tongle brindle cresk hardie bickern slag"),
)
SKILLS = {skill.name: skill for skill in (*ORDERS, *CIPHERS, *VOCABULARIES)}

REORDERINGS: Mapping[str, Callable[[list[str]], list[str]]] = {
    "reverse": lambda items: items[::-1],
    "rotate": lambda items: [*items[1:], items[0]],
    "swap": lambda items: [items[-1], *items[1:-1], items[0]],
    "behead": lambda items: items[1:],
    "curtail": lambda items: items[:-1],
    "echo": lambda items: [*items, items[-1]],
}

CONTRIBUTORS = {
    "mirror": "reverse", "carousel": "rotate", "bluebird": "cobalt", "beekeeper": "amber", "harbour": "harbour",
    "quarry": "quarry",
}  # fmt: skip
"""Whose file of examples, which never leaves their machine, is about which skill; in the order of expert numbers."""
