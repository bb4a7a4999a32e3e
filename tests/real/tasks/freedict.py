"""FreeDict: words in another language, and the gender of nouns."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator

from tests.real.tasks.compressed import dictionary
from tests.real.tasks.task import Row, Task, balanced

ENTRY = re.compile(r"^([^\s/][^/\n]*?) /[^/\n]*/([^\n]*)\n((?:[^\n]+\n)+?)(?=[^\s/\d][^/\n]* /|\n|\Z)", re.MULTILINE)
WORD = re.compile(r"[^\W\d_]+")
GENDERS = {"masc": "masculine", "fem": "feminine", "neut": "neuter"}
LANGUAGES = {
    "deu": "German", "fra": "French", "ita": "Italian", "nld": "Dutch", "por": "Portuguese", "spa": "Spanish",
    "swe": "Swedish", "eng": "English",
}  # fmt: skip
PAIRS = (
    "eng-deu", "eng-fra", "eng-ita", "eng-nld", "eng-por", "eng-spa", "eng-swe", "deu-eng", "fra-eng", "spa-eng",
)  # fmt: skip
GENDERED = {"deu-eng": "German", "fra-eng": "French"}


def words(text: str) -> Iterator[Row]:
    """Read single words with every translation that is a single word."""
    for found in ENTRY.finditer(text):
        lines = (re.sub(r"^\d+\. ", "", line) for line in found[3].splitlines() if not line.startswith("  "))
        right = [
            each.strip()
            for line in lines
            for each in re.split(r"[,;]", re.sub(r"<[^>]*>|\([^)]*\)|\[[^]]*]", "", line))
        ]
        targets = tuple(dict.fromkeys(each for each in right if WORD.fullmatch(each)))
        if WORD.fullmatch(found[1]) and targets:
            yield Row(found[1], targets)


def genders(text: str) -> list[Row]:
    """Read single nouns with their gender, where they have one only."""
    found: dict[str, set[str]] = defaultdict(set)
    for entry in ENTRY.finditer(text):
        if WORD.fullmatch(entry[1]) and (tag := re.search(r"<[^>]*\b(masc|fem|neut)\b[^>]*>", entry[2])):
            found[entry[1]].add(GENDERS[tag[1]])
    return balanced(Row(noun, tuple(genders)) for noun, genders in found.items() if len(genders) == 1)


def _of(pair: str, read: Callable[[str], Iterator[Row] | list[Row]]) -> Callable[[], Iterator[Row] | list[Row]]:
    return lambda: read(dictionary(f"dict-freedict-{pair}"))


def tasks() -> list[Task]:
    """List the tasks that contributors have; word for word is knowledge that an English base lacks, so they are few."""
    found = []
    for pair in PAIRS:
        source, target = (LANGUAGES[code] for code in pair.split("-"))
        asked = f"{source}: {{}}\nEnglish:" if target == "English" else f"{target} for: {{}}"
        other = (f"How do you say {{}} in {target}?",) if pair in ("eng-fra", "eng-spa") else ()
        found.append(
            Task(f"{source}-{target}".lower(), "skill", "languages", (f"dict-freedict-{pair}",), "exact",
                 _of(pair, words), (asked,), other)
        )  # fmt: skip
    for pair, language in GENDERED.items():
        choices = "masculine, feminine or neuter" if pair == "deu-eng" else "masculine or feminine"
        found.append(
            Task(f"{language}-gender".lower(), "skill", "grammar", (f"dict-freedict-{pair}",), "choices",
                 _of(pair, genders), (f"{language} noun: {{}}\n{choices}?",))
        )  # fmt: skip
    return found
