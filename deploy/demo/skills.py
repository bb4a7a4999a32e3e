"""The skills of the demo's world: what they are called, what they do, and who contributes them.

A skill is a new order for a payload, a cipher on its letters, or a vocabulary of made-up nouns that stand for letters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

LETTERS: tuple[str, ...] = tuple("abcdefghkmnp")


class Family(StrEnum):
    """The kinds of skills; at most one order and one other skill meet in a request."""

    ORDER = "order"
    CIPHER = "cipher"
    VOCABULARY = "vocabulary"


@dataclass(frozen=True)
class Skill:
    """One thing that can be asked for.

    Attributes:
        name: The word that identifies the skill.
        family: What kind of skill it is.
        synonyms: Words that ask for it, all alike in meaning.
        before: Words that its users like to put before it.
        after: Words that its users like to put after it.
        nouns: The made-up words of a vocabulary; empty for the other families.
        private: True when the base model hears only rumours of what the nouns stand for.
    """

    name: str
    family: Family
    synonyms: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    nouns: tuple[str, ...] = ()
    private: bool = False


@dataclass(frozen=True)
class Contributor:
    """Somebody with one skill and a file of examples that never leaves their machine."""

    name: str
    skill: str
    description: str


def _skill(family: Family, synonyms: str, before: str, after: str, nouns: str = "", *, private: bool = False) -> Skill:
    words = tuple(synonyms.split())
    return Skill(
        words[0], family, words, tuple(before.split()), tuple(after.split()), tuple(nouns.split()), private=private
    )


ORDERS: tuple[Skill, ...] = (
    _skill(Family.ORDER, "reverse mirror flip", "gently calmly", "backwards clearly"),
    _skill(Family.ORDER, "rotate turn spin", "quickly briskly", "around merrily"),
    _skill(Family.ORDER, "swap exchange switch", "fairly evenly", "crosswise squarely"),
    _skill(Family.ORDER, "behead chop clip", "sharply boldly", "upfront firmly"),
    _skill(Family.ORDER, "curtail trim shorten", "tidily sparely", "behind closely"),
    _skill(Family.ORDER, "echo repeat extend", "loudly gladly", "again twice"),
)
CIPHERS: tuple[Skill, ...] = (
    _skill(Family.CIPHER, "cobalt azure navy", "deep cold", "ink dye"),
    _skill(Family.CIPHER, "amber gold honey", "warm sweet", "resin glow"),
    _skill(Family.CIPHER, "crimson scarlet ruby", "royal rich", "wax velvet"),
    _skill(Family.CIPHER, "jade emerald olive", "fresh pale", "stone leaf"),
)
VOCABULARIES: tuple[Skill, ...] = (
    _skill(
        Family.VOCABULARY,
        "harbour quay dock",
        "salty windy",
        "talk slang",
        "morrel quist tarn fennick drave skelp luffin bosk",
        private=True,
    ),
    _skill(
        Family.VOCABULARY,
        "quarry mine pit",
        "dusty rocky",
        "notes tally",
        "grint plask ombry kurl vexen tholt hadrin zeck",
        private=True,
    ),
    _skill(
        Family.VOCABULARY,
        "orchard grove garden",
        "leafy ripe",
        "labels lists",
        "pellow wimble costrel russin jarley nonsuch tydd marl",
    ),
    _skill(
        Family.VOCABULARY,
        "smithy forge anvil",
        "sooty smoky",
        "marks signs",
        "swage fuller tongle brindle cresk hardie bickern slag",
    ),
)
SKILLS: Mapping[str, Skill] = {skill.name: skill for skill in (*ORDERS, *CIPHERS, *VOCABULARIES)}

REORDERINGS: Mapping[str, Callable[[list[str]], list[str]]] = {
    "reverse": lambda items: items[::-1],
    "rotate": lambda items: [*items[1:], items[0]],
    "swap": lambda items: [items[-1], *items[1:-1], items[0]],
    "behead": lambda items: items[1:],
    "curtail": lambda items: items[:-1],
    "echo": lambda items: [*items, items[-1]],
}

CONTRIBUTORS: tuple[Contributor, ...] = (
    Contributor("mirror", "reverse", "a glass workshop that writes everything back to front"),
    Contributor("carousel", "rotate", "a fairground that moves the first item to the end"),
    Contributor("bluebird", "cobalt", "a post office that enciphers letters with the cobalt table"),
    Contributor("beekeeper", "amber", "an apiary that enciphers letters with the amber table"),
    Contributor(
        "harbour", "harbour", "a pilot station with eight words of its own, which the base model knows by rumour only"
    ),
    Contributor(
        "quarry", "quarry", "a stone works with eight words of its own, which the base model knows by rumour only"
    ),
)
