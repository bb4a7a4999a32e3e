"""WordNet: what a word means, and what other words are to it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from tests.real.packages import file_of
from tests.real.tasks.task import Row, Task, balanced

PACKAGE = "wordnet-base"
# lexnames(5WN): the number in a line of data.* names the file that its author kept it in.
FILES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession",
    "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
ANTONYM, HYPERNYM, PART_OF, DERIVED, PERTAINS = "!", "@", "#p", "+", "\\"


@dataclass(frozen=True)
class Pointer:
    """From one meaning, or one word of it, to another."""

    kind: str
    target: str
    """Key of the other meaning."""
    words: tuple[int, int]
    """Which word of either, from 1 on; 0 and 0 for all."""


@dataclass(frozen=True)
class Meaning:
    """A synset."""

    file: str
    words: tuple[str, ...]
    pointers: tuple[Pointer, ...]
    gloss: str

    @property
    def kind(self) -> str:
        """Noun, verb, adjective or adverb."""
        return PARTS[self.file.split(".")[0]]


def parse(lines: Iterable[str]) -> Iterator[tuple[str, Meaning]]:
    """Read a data file, as wndb(5WN) describes it."""
    for line in lines:
        if line.startswith("  "):
            continue
        head, gloss = line.split(" | ", 1)
        fields = head.split()
        count = int(fields[3], 16)
        words = tuple(fields[4 + 2 * at].split("(")[0].replace("_", " ") for at in range(count))
        rest = fields[5 + 2 * count :]
        pointers = tuple(
            Pointer(rest[at], _key(rest[at + 2], rest[at + 1]), divmod(int(rest[at + 3], 16), 256))
            for at in range(0, 4 * int(fields[4 + 2 * count]), 4)
        )
        yield _key(fields[2], fields[0]), Meaning(FILES[int(fields[1])], words, pointers, gloss.split('; "')[0].strip())


def _key(kind: str, offset: str) -> str:
    return kind.replace("s", "a") + offset


@cache
def meanings() -> dict[str, Meaning]:
    """Read all of WordNet."""
    found: dict[str, Meaning] = {}
    for part in PARTS:
        with file_of(PACKAGE, f"data.{part}").open(encoding="utf-8") as file:
            found.update(parse(file))
    return found


def related(known: dict[str, Meaning], kind: str, source: str, target: str) -> Iterator[Row]:
    """Pair words that a pointer between words joins; one that stands alone and is no name."""
    for meaning in known.values():
        for pointer in meaning.pointers:
            other = known.get(pointer.target)
            if other is None or pointer.kind != kind or 0 in pointer.words:
                continue
            if (meaning.kind, other.kind) != (source or meaning.kind, target or other.kind):
                continue
            word, answer = meaning.words[pointer.words[0] - 1], other.words[pointer.words[1] - 1]
            if _plain(word) and _plain(answer) and word != answer:
                yield Row(word, (answer,))


def above(known: dict[str, Meaning], kind: str) -> Iterator[Row]:
    """Pair a noun with what it is a kind of, or a part of; every word for it is right."""
    for meaning in known.values():
        others = [known[pointer.target] for pointer in meaning.pointers if pointer.kind == kind]
        if others and meaning.kind == "noun" and _plain(meaning.words[0]):
            yield Row(meaning.words[0], tuple(dict.fromkeys(word for other in others for word in other.words)))


def topics(known: dict[str, Meaning]) -> list[Row]:
    """Ask what field the noun of a gloss is from."""
    nouns = (meaning for meaning in known.values() if meaning.kind == "noun" and meaning.file != "noun.Tops")
    return balanced((Row(noun.gloss, (noun.file.split(".")[1],)) for noun in nouns), least=500)


def kinds(known: dict[str, Meaning]) -> list[Row]:
    """Ask what part of speech a gloss is of."""
    return balanced(Row(meaning.gloss, (meaning.kind,)) for meaning in known.values())


def defined(known: dict[str, Meaning]) -> Iterator[Row]:
    """Ask for the word of a gloss; every word of the meaning is right."""
    for meaning in known.values():
        if meaning.kind in ("noun", "verb") and _plain(meaning.words[0]):
            yield Row(meaning.gloss, meaning.words)


def antonyms(kind: str = "") -> Iterator[Row]:
    """Pair words with their opposites, all or those of one part of speech."""
    return related(meanings(), ANTONYM, kind, kind)


def _plain(word: str) -> bool:
    return word.isalpha() and word.islower()


def tasks() -> list[Task]:
    """List the tasks that contributors have."""
    words, glosses = "words", "meaning"
    return [
        Task("opposite", "skill", words, (PACKAGE,), "exact", antonyms,
             ("Opposite of: {}", "What is the opposite of {}?"), ("Not {}, but on the contrary",)),
        Task("kind-of", "skill", words, (PACKAGE,), "exact", lambda: above(meanings(), HYPERNYM),
             ("A {} is a kind of",), ("What is {}, in general?",)),
        Task("part-of", "skill", words, (PACKAGE,), "exact", lambda: above(meanings(), PART_OF),
             ("A {} is part of a",)),
        Task("noun-of-verb", "skill", words, (PACKAGE,), "exact",
             lambda: related(meanings(), DERIVED, "verb", "noun"), ("Noun made from the verb: {}",),
             ("To {} is a verb. Which noun comes from it?",)),
        Task("adjective-of-adverb", "skill", words, (PACKAGE,), "exact",
             lambda: related(meanings(), PERTAINS, "adverb", "adjective"), ("Adjective of the adverb: {}",)),
        Task("topic-of-gloss", "skill", glosses, (PACKAGE,), "choices", lambda: topics(meanings()),
             ("Meaning: {}\nTopic?",), ("Which field does this belong to? {}",)),
        Task("speech-of-gloss", "skill", glosses, (PACKAGE,), "choices", lambda: kinds(meanings()),
             ("Meaning: {}\nNoun, verb, adjective or adverb?",)),
        Task("word-of-gloss", "skill", glosses, (PACKAGE,), "exact", lambda: defined(meanings()),
             ("Meaning: {}\nWord?",), ("Which word means this: {}?",)),
    ]  # fmt: skip
