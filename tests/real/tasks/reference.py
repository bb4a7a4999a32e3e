"""Works of reference: Webster of 1913 (GCIDE), FOLDOC and VERA on computing, and sayings by subject (fortunes)."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.real.packages import files_of
from tests.real.tasks.compressed import dictionary
from tests.real.tasks.task import Row, Task, balanced

FIELDS = {
    "Anat": "anatomy", "Arch": "architecture", "Astron": "astronomy", "Biol": "biology", "Bot": "botany",
    "Chem": "chemistry", "Eccl": "church", "Gram": "grammar", "Geol": "geology", "Her": "heraldry", "Law": "law",
    "Math": "mathematics", "Med": "medicine", "Mil": "military", "Min": "mineralogy", "Mus": "music",
    "Naut": "seafaring", "Physiol": "physiology", "Zool": "zoology",
}  # fmt: skip
ORIGINS = {
    "L": "Latin",
    "F": "French",
    "OF": "Old French",
    "AS": "Old English",
    "Gr": "Greek",
    "Sp": "Spanish",
    "It": "Italian",
}
SUBJECTS = (
    "art", "computers", "cookie", "definitions", "education", "food", "humorists", "kids", "law", "linuxcookie",
    "literature", "love", "medicine", "miscellaneous", "news", "people", "perl", "pets", "platitudes", "politics",
    "riddles", "science", "songs-poems", "sports", "startrek", "tao", "wisdom", "work",
)  # fmt: skip
"""Of sayings; the others are rude, or none."""
ENTRY = re.compile(r"^(\w[\w' -]*) \\[^\\\n]*\\,? ?([^\n]*(?:\n(?!\w|\n).*)*)", re.MULTILINE)
LENGTHS = range(20, 240)
"""Characters of what is asked about."""


class Entry(NamedTuple):
    """A word of Webster's with all that stands below it."""

    word: str
    body: str


def entries(text: str) -> Iterator[Entry]:
    """Read the dictionary word by word."""
    for found in re.finditer(
        r"^([A-Z][\w' -]*) \\[^\\\n]*\\(.*?)(?=^[A-Z][\w' -]* \\|\Z)", text, re.MULTILINE | re.DOTALL
    ):
        yield Entry(found[1], found[2])


def _sense(body: str, start: int) -> str:
    """Read a sense from where it starts to the end of its paragraph, without examples."""
    text = " ".join(re.split(r"\n\s*\n|\[1913 Webster\]|\[PJC\]|--", body[start:])[0].split())
    return re.sub(r"[{}]|\(\w+\.\)|\[[^]]*\]", "", text).strip(" ;.")


def fields(known: Iterator[Entry]) -> list[Row]:
    """Ask from which field of knowledge a sense is, where the dictionary marks it."""
    rows = []
    for word, body in known:
        for found in re.finditer(r"\(([A-Z][a-z\"\u00f6]+)\.?\)", body):
            name = FIELDS.get(found[1].replace('"', "").replace("\u00f6", "o"))
            sense = _sense(body, found.end())
            if name and len(sense) in LENGTHS:
                rows.append(Row(f"{word}: {sense}", (name,), groups=(word,)))
    return balanced(rows, least=250)


def origins(known: Iterator[Entry]) -> list[Row]:
    """Ask which language a word comes from, by the first that its etymology names."""
    rows = []
    for word, body in known:
        found = re.match(r"[^\[\n]*\n?[^\[\n]*\[(?:From |fr\. )?(L|F|OF|AS|Gr|Sp|It)\. ", body)
        if found and " " not in word:
            rows.append(Row(word.casefold(), (ORIGINS[found[1]],)))
    return balanced(rows, least=250)


def terms(text: str) -> list[Row]:
    """Ask from which field a term of computing is."""
    pattern = r"\n\n([^\s][^\n]*)\n\n   <([a-z ]+?)(?:, [^>]*)?> ((?:[^\n]+\n)+)"
    return balanced(
        (
            Row(
                f"{found[1]}. {' '.join(re.sub('[{}]', '', found[3]).split())[: LENGTHS.stop]}",
                (found[2],),
                groups=(found[1],),
            )
            for found in re.finditer(pattern, text)
        ),
        least=120,
    )


def acronyms(text: str) -> Iterator[Row]:
    """Pair what an acronym of computing stands for with it."""
    for found in re.finditer(r"^([A-Z0-9]{2,6})\n\s+([A-Z][^\n]+)", text, re.MULTILINE):
        meaning = re.sub(r"\s*[(\[].*", "", found[2]).strip()
        if len(meaning.split()) > 1:
            yield Row(meaning, (found[1],))


def sayings(files: dict[str, str]) -> list[Row]:
    """Ask which collection a saying is from."""
    return balanced(
        (
            Row(text, (subject,))
            for subject, content in files.items()
            for each in re.split(r"^%\n", content, flags=re.MULTILINE)
            if len(text := " ".join(each.split())) in LENGTHS
        ),
        least=100,
    )


def _sayings() -> list[Row]:
    folders = [files_of(package) / "usr/share/games/fortunes" for package in ("fortunes", "fortunes-min")]
    paths = [folder / subject for subject in SUBJECTS for folder in folders if (folder / subject).is_file()]
    return sayings({path.name: path.read_text(encoding="utf-8", errors="replace") for path in paths})


def tasks() -> list[Task]:
    """List the tasks that contributors have."""
    gcide, foldoc = ("dict-gcide",), ("dict-foldoc",)
    return [
        Task("field-of-sense", "skill", "knowledge", gcide, "choices", lambda: fields(entries(dictionary(*gcide))),
             ("{}\nField of knowledge?",), ("{}\nWho would say so? Name the field.",)),
        Task("word-origin", "skill", "words", gcide, "choices", lambda: origins(entries(dictionary(*gcide))),
             ("Which language does the word {} come from?",)),
        Task("field-of-term", "skill", "software", foldoc, "choices", lambda: terms(dictionary(*foldoc)),
             ("Term: {}\nField?",)),
        Task("acronym", "skill", "software", ("dict-vera",), "exact", lambda: acronyms(dictionary("dict-vera")),
             ("Acronym for: {}",), ("{}, in short",)),
        Task("subject-of-saying", "skill", "literature", ("fortunes", "fortunes-min"), "choices", _sayings,
             ("Saying: {}\nCollection?",)),
    ]  # fmt: skip
