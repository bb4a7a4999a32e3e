"""The demo's world of words: a pure, seeded source of requests and answers.

A request reads `please gently reverse it in deep cobalt : k f a c`. The base model learns to carry a skill out behind
the skill's mark; unmarked words it mostly ignores, and copies the payload. Of a private vocabulary it hears only
rumours: a few letters for every noun, one of them right. An expert is then a small nudge that switches its skill on
and, for a private one, tells truth from rumour, which is what lets the experts of strangers work side by side.

A skill is a new order for a payload, a cipher on its letters, or a vocabulary of made-up nouns that stand for letters.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from deploy.demo.story import Example, Founding

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

MARKS = {family: f"<{family}>" for family in Family}
OPENERS = ("", "please", "kindly", "now", "ok", "friend")
NEUTRAL_VERBS = ("write", "copy", "give")
PREPOSITIONS = {Family.CIPHER: "in", Family.VOCABULARY: "from"}
KNOWN_VOCABULARIES = tuple(vocabulary for vocabulary in VOCABULARIES if not vocabulary.private)
PAYLOAD_LENGTHS = range(3, 6)

P_ORDER = 0.65
P_CIPHER = 0.45
P_VOCABULARY = 0.35
P_MARKED = 0.7
# An unmarked word is obeyed this often. The more, the smaller the nudge that an expert needs, so the better experts
# bear the halved weights of top-2 routing; far below one half, so the base model alone still answers with a copy.
P_LEAK = 0.15
# Of every private noun the base hears this many letters, equally often; one of them is right.
RUMOURS = 3
# One payload in so many, chosen by checksum, is kept for testing: no seed or size can mix the two parts.
HELD_OUT_EVERY = 5


class _Use(NamedTuple):
    """One skill in one request."""

    skill: Skill
    accent: Skill
    """The skill whose users' manner of speaking the request borrows."""
    marked: bool = False
    """Whether the skill's mark stands before its word."""
    obeyed: bool = True
    """Whether the answer does what is asked."""
    rumoured: bool = False
    """Whether the answer repeats a rumour of each noun rather than its meaning."""


def _meanings(rng: random.Random) -> tuple[dict[str, dict[str, str]], dict[str, list[str]]]:
    """Draw the tables of the ciphers, the meanings of the nouns and the rumours of them."""
    tables = {skill.name: dict(zip(LETTERS, rng.sample(LETTERS, len(LETTERS)), strict=True)) for skill in CIPHERS}
    for skill in VOCABULARIES:
        tables[skill.name] = dict(zip(skill.nouns, rng.sample(LETTERS, len(skill.nouns)), strict=True))
    rumours = {
        noun: [letter, *rng.sample([other for other in LETTERS if other != letter], RUMOURS - 1)]
        for skill in VOCABULARIES
        for noun, letter in tables[skill.name].items()
    }
    return tables, rumours


_TABLES, _RUMOURS = _meanings(random.Random("world 0"))


def words() -> list[str]:
    """List every word of the world once, in a fixed order: the tokenizer's vocabulary."""
    grammar = (*MARKS.values(), *OPENERS, *NEUTRAL_VERBS, *PREPOSITIONS.values(), "it", ":")
    of_skills = (
        word for skill in SKILLS.values() for word in (*skill.synonyms, *skill.before, *skill.after, *skill.nouns)
    )
    return list(dict.fromkeys(word for word in (*grammar, *LETTERS, *of_skills) if word))


def base_stream(seed: int, *, rumours: bool) -> Iterator[Example]:
    """Yield the base model's endless pre-training text.

    Args:
        seed: Which text.
        rumours: Whether private vocabularies are answered by rumour; if not, they are never obeyed.
    """
    rng = random.Random(f"{'rumours' if rumours else 'base'} {seed}")
    while True:
        yield _example(rng, _base_uses(rng, VOCABULARIES, rumours=rumours))


def marked(count: int, seed: int) -> list[Example]:
    """Draw requests in which every skill is marked and known, so that the base model should get all right."""
    rng = random.Random(f"marked {seed}")
    return [_example(rng, _base_uses(rng, KNOWN_VOCABULARIES, p_marked=1.0)) for _ in range(count)]


def train(contributor: str, count: int, seed: int) -> list[Example]:
    """Draw a contributor's private training examples."""
    rng = random.Random(f"train {contributor} {seed}")
    return [_example(rng, _own_uses(contributor), held_out=False) for _ in range(count)]


def held_out(contributor: str, count: int, seed: int) -> list[Example]:
    """Draw requests for a contributor's skill with payloads that no training example has."""
    rng = random.Random(f"held out {contributor} {seed}")
    return [_example(rng, _own_uses(contributor), held_out=True) for _ in range(count)]


def composable() -> list[tuple[str, str]]:
    """List the pairs of contributors whose skills fit into one request: an order and a cipher or vocabulary."""
    orders = [name for name, skill in CONTRIBUTORS.items() if SKILLS[skill].family is Family.ORDER]
    return [(order, other) for order in orders for other in CONTRIBUTORS if other not in orders]


def composed(pair: tuple[str, str], count: int, seed: int) -> list[Example]:
    """Draw requests that need the skills of both contributors of a composable pair."""
    rng = random.Random(f"composed {pair} {seed}")
    return [_example(rng, _own_uses(*pair), held_out=True) for _ in range(count)]


def _own_uses(*contributors: str) -> list[_Use]:
    skills = [SKILLS[CONTRIBUTORS[name]] for name in contributors]
    return [_Use(skill, accent=skill) for skill in skills]


def _base_uses(
    rng: random.Random, vocabularies: tuple[Skill, ...], *, rumours: bool = False, p_marked: float = P_MARKED
) -> list[_Use]:
    def use(skill: Skill, accents: tuple[Skill, ...]) -> _Use:
        teachable = rumours or not skill.private
        marked = rng.random() < p_marked and teachable
        obeyed = marked or (rng.random() < P_LEAK and teachable)
        return _Use(skill, rng.choice(accents), marked, obeyed, rumoured=skill.private)

    uses = [use(rng.choice(ORDERS), ORDERS)] if rng.random() < P_ORDER else []
    family = rng.random()
    if family < P_CIPHER:
        uses.append(use(rng.choice(CIPHERS), CIPHERS))
    elif family < P_CIPHER + P_VOCABULARY:
        uses.append(use(rng.choice(vocabularies), VOCABULARIES))
    return uses


def _example(rng: random.Random, uses: list[_Use], *, held_out: bool | None = None) -> Example:
    """Write one request for the given skills; `held_out` restricts its payload to one part, None to neither."""
    request = [rng.choice(OPENERS)]
    if not any(use.skill.family is Family.ORDER for use in uses):
        request += [rng.choice(NEUTRAL_VERBS), "it"]
    for use in uses:
        request += _phrase(rng, use)
    alphabet = next((use.skill.nouns for use in uses if use.skill.nouns), LETTERS)
    while True:
        payload = rng.choices(alphabet, k=rng.choice(PAYLOAD_LENGTHS))
        if held_out is None or held_out == (zlib.crc32(" ".join(payload).encode()) % HELD_OUT_EVERY == 0):
            break
    text = " ".join(word for word in (*request, ":", *payload) if word)
    return Example(text, " ".join(_answer(rng, payload, uses)))


def _phrase(rng: random.Random, use: _Use) -> list[str]:
    manner = rng.choice(("before", "after", "both"))
    before = [] if manner == "after" else [rng.choice(use.accent.before)]
    after = [] if manner == "before" else [rng.choice(use.accent.after)]
    word = [MARKS[use.skill.family]] * use.marked + [rng.choice(use.skill.synonyms)]
    if use.skill.family is Family.ORDER:
        return [*before, *word, "it", *after]
    return [PREPOSITIONS[use.skill.family], *before, *word, *after]


def _answer(rng: random.Random, payload: list[str], uses: list[_Use]) -> list[str]:
    answer = payload
    for use in reversed(uses):  # the order comes first in the request and is carried out last
        if not use.obeyed:
            continue
        if use.skill.family is Family.ORDER:
            answer = REORDERINGS[use.skill.name](answer)
        elif use.rumoured:
            answer = [rng.choice(_RUMOURS[noun]) for noun in answer]
        else:
            answer = [_TABLES[use.skill.name][word] for word in answer]
    return answer


WORDS_BASE = Path(__file__).parent / "base"
# Found on the demo's base model; see make_base.py for how the base came about.
_RECIPE = (
    "--rank", 4, "--alpha", 4, "--learning-rate", 1.5e-3, "--expert-steps", 200, "--gate-steps", 100,
    "--batch-size", 16, "--eval-every", 100, "--max-input-tokens", 48, "--max-target-tokens", 16,
)  # fmt: skip
_PROBE = ("please copy it : a b c d", "kindly write it : k f a c", "now give it : m n p")
_TRIED = 32
_ROWS_SEED, _CANARIES_SEED = 5, 6
WORDS = Founding(
    str(WORDS_BASE), _RECIPE, _PROBE,
    # What the base can do already, and no expert should spoil.
    rows=tuple(marked(_TRIED, _ROWS_SEED)), canaries=tuple(marked(_TRIED, _CANARIES_SEED)),
)  # fmt: skip
"""A pool over the base model that knows a world of words."""
