"""The demo's world of words: a pure, seeded source of requests and answers.

A request reads `please gently reverse it in deep cobalt : k f a c`. The base model learns to carry a skill out behind
the skill's mark; unmarked words it mostly ignores, and copies the payload. Of a private vocabulary it hears only
rumours: a few letters for every noun, one of them right. An expert is then a small nudge that switches its skill on
and, for a private one, tells truth from rumour, which is what lets the experts of strangers work side by side.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from deploy.demo.skills import (
    CIPHERS,
    CONTRIBUTORS,
    LETTERS,
    ORDERS,
    REORDERINGS,
    SKILLS,
    VOCABULARIES,
    Contributor,
    Family,
    Skill,
)

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


class Example(NamedTuple):
    """A request and its answer, as words with single spaces between them."""

    input: str
    target: str


@dataclass(frozen=True)
class _Use:
    """One skill in one request.

    Attributes:
        skill: What is asked for.
        accent: The skill whose users' manner of speaking the request borrows.
        marked: Whether the skill's mark stands before its word.
        obeyed: Whether the answer does what is asked.
        rumoured: Whether the answer repeats a rumour of each noun rather than its meaning.
    """

    skill: Skill
    accent: Skill
    marked: bool = False
    obeyed: bool = True
    rumoured: bool = False


class World:
    """Everything that can be asked and answered; two worlds of one seed are equal.

    Attributes:
        contributors: Who takes part, in the order of their expert numbers.
    """

    contributors: tuple[Contributor, ...] = CONTRIBUTORS

    def __init__(self, seed: int = 0) -> None:
        """Draw the tables of the ciphers, the meanings of the nouns and the rumours of them."""
        rng = random.Random(f"world {seed}")
        self._tables = {
            cipher.name: dict(zip(LETTERS, rng.sample(LETTERS, len(LETTERS)), strict=True)) for cipher in CIPHERS
        }
        for vocabulary in VOCABULARIES:
            letters = rng.sample(LETTERS, len(vocabulary.nouns))
            self._tables[vocabulary.name] = dict(zip(vocabulary.nouns, letters, strict=True))
        self._rumours = {
            noun: (letter, *rng.sample([other for other in LETTERS if other != letter], RUMOURS - 1))
            for vocabulary in VOCABULARIES
            for noun, letter in self._tables[vocabulary.name].items()
        }

    @staticmethod
    def words() -> list[str]:
        """List every word of the world once, in a fixed order: the tokenizer's vocabulary."""
        grammar = (*MARKS.values(), *OPENERS, *NEUTRAL_VERBS, *PREPOSITIONS.values(), "it", ":")
        of_skills = (
            word for skill in SKILLS.values() for word in (*skill.synonyms, *skill.before, *skill.after, *skill.nouns)
        )
        return list(dict.fromkeys(word for word in (*grammar, *LETTERS, *of_skills) if word))

    def base_stream(self, seed: int, *, rumours: bool) -> Iterator[Example]:
        """Yield the base model's endless pre-training text.

        Args:
            seed: Which text.
            rumours: Whether private vocabularies are answered by rumour; if not, they are never obeyed.
        """
        rng = random.Random(f"{'rumours' if rumours else 'base'} {seed}")
        while True:
            yield self._example(rng, self._base_uses(rng, VOCABULARIES, rumours=rumours))

    def marked(self, count: int, seed: int) -> list[Example]:
        """Draw requests in which every skill is marked and known, so that the base model should get all right."""
        rng = random.Random(f"marked {seed}")
        return [self._example(rng, self._base_uses(rng, KNOWN_VOCABULARIES, p_marked=1.0)) for _ in range(count)]

    def train(self, contributor: str, count: int, seed: int) -> list[Example]:
        """Draw a contributor's private training examples."""
        rng = random.Random(f"train {contributor} {seed}")
        return [self._example(rng, self._own_uses(contributor), held_out=False) for _ in range(count)]

    def held_out(self, contributor: str, count: int, seed: int) -> list[Example]:
        """Draw requests for a contributor's skill with payloads that no training example has."""
        rng = random.Random(f"held out {contributor} {seed}")
        return [self._example(rng, self._own_uses(contributor), held_out=True) for _ in range(count)]

    def composable(self) -> list[tuple[str, str]]:
        """List the pairs of contributors whose skills fit into one request: an order and a cipher or vocabulary."""
        orders = [one.name for one in self.contributors if SKILLS[one.skill].family is Family.ORDER]
        others = [one.name for one in self.contributors if one.name not in orders]
        return [(order, other) for order in orders for other in others]

    def composed(self, pair: tuple[str, str], count: int, seed: int) -> list[Example]:
        """Draw requests that need the skills of both contributors of a composable pair."""
        if pair not in self.composable():
            raise ValueError(f"{pair} is not one of the composable pairs {self.composable()}")
        rng = random.Random(f"composed {pair} {seed}")
        return [self._example(rng, self._own_uses(*pair), held_out=True) for _ in range(count)]

    def _own_uses(self, *contributors: str) -> list[_Use]:
        skills = {one.name: SKILLS[one.skill] for one in self.contributors}
        return [_Use(skills[name], accent=skills[name]) for name in contributors]

    @staticmethod
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

    def _example(self, rng: random.Random, uses: list[_Use], *, held_out: bool | None = None) -> Example:
        """Write one request for the given skills; `held_out` restricts its payload to one part, None to neither."""
        request = [rng.choice(OPENERS)]
        if not any(use.skill.family is Family.ORDER for use in uses):
            request += [rng.choice(NEUTRAL_VERBS), "it"]
        for use in uses:
            request += self._phrase(rng, use)
        alphabet = next((use.skill.nouns for use in uses if use.skill.nouns), LETTERS)
        payload = self._payload(rng, alphabet, held_out=held_out)
        text = " ".join(word for word in (*request, ":", *payload) if word)
        return Example(text, " ".join(self._answer(rng, payload, uses)))

    @staticmethod
    def _phrase(rng: random.Random, use: _Use) -> list[str]:
        manner = rng.choice(("before", "after", "both"))
        before = [] if manner == "after" else [rng.choice(use.accent.before)]
        after = [] if manner == "before" else [rng.choice(use.accent.after)]
        word = [MARKS[use.skill.family]] * use.marked + [rng.choice(use.skill.synonyms)]
        if use.skill.family is Family.ORDER:
            return [*before, *word, "it", *after]
        return [PREPOSITIONS[use.skill.family], *before, *word, *after]

    @staticmethod
    def _payload(rng: random.Random, alphabet: tuple[str, ...], *, held_out: bool | None) -> list[str]:
        while True:
            payload = rng.choices(alphabet, k=rng.choice(PAYLOAD_LENGTHS))
            is_held_out = zlib.crc32(" ".join(payload).encode()) % HELD_OUT_EVERY == 0
            if held_out is None or is_held_out == held_out:
                return payload

    def _answer(self, rng: random.Random, payload: list[str], uses: list[_Use]) -> list[str]:
        answer = payload
        for use in reversed(uses):  # the order comes first in the request and is carried out last
            if not use.obeyed:
                continue
            if use.skill.family is Family.ORDER:
                answer = REORDERINGS[use.skill.name](answer)
            elif use.rumoured:
                answer = [rng.choice(self._rumours[noun]) for noun in answer]
            else:
                answer = [self._tables[use.skill.name][word] for word in answer]
        return answer
