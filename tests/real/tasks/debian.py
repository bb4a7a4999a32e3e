"""Debian's archive: what tens of thousands of programs are, in one line and in a paragraph, in several languages."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from tests.real.packages import file_of
from tests.real.tasks.task import Row, Task, balanced

PACKAGE = "debian-index"
TARGETS = {"da": "Danish", "de": "German", "fr": "French", "it": "Italian"}
"""Languages with more than ten thousand translated lines."""
# A library's name says its section, and its like come in dozens.
NAMED = re.compile(r"lib|golang-|node-|r-cran|python3-|ruby-|haskell-|fonts-")
NO_FIELD = {"oldlibs", "metapackages", "debug", "libs", "libdevel", "misc", "localization"}
LINE = 10
"""Fewest characters of a line that says something."""


@dataclass(frozen=True)
class Program:
    """A package of the archive."""

    name: str
    source: str
    """What it is built from, without version numbers: packages of one source describe themselves alike."""
    section: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """What a program is, in one language."""

    line: str
    text: str


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Read paragraphs of fields, continuation lines included."""
    for paragraph in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] += f"\n{line}"
            elif ":" in line:
                name, value = line.split(":", 1)
                fields[name] = value.strip()
        if "Package" in fields:
            yield fields


def programs(text: str) -> dict[str, Program]:
    """Read the list of packages."""
    return {
        fields["Package"]: Program(
            fields["Package"],
            re.sub(r"\d[\d.]*", "#", fields.get("Source", fields["Package"]).split(" ")[0]),
            fields.get("Section", "").rsplit("/", 1)[-1],
            tuple(re.findall(r"[\w-]+::[\w+.:-]+", fields.get("Tag", ""))),
        )
        for fields in stanzas(text)
    }


def descriptions(text: str) -> dict[str, Description]:
    """Read one language's descriptions."""
    found = {}
    for fields in stanzas(text):
        for name, value in fields.items():
            if name.startswith("Description-") and name != "Description-md5":
                line, _, rest = value.partition("\n")
                paragraphs = re.split(r"\n \.(?=\n)", f"\n{rest}")
                found[fields["Package"]] = Description(
                    line.strip(), "\n\n".join(" ".join(each.split()) for each in paragraphs).strip()
                )
    return found


@cache
def archive() -> dict[str, Program]:
    """Read the archive's programs."""
    return programs(file_of(PACKAGE, "packages.txt").read_text(encoding="utf-8"))


@cache
def described(language: str) -> dict[str, Description]:
    """Read what programs are, in one language."""
    return descriptions(file_of(PACKAGE, f"translation-{language}.txt").read_text(encoding="utf-8"))


def sections(known: dict[str, Program], said: dict[str, Description]) -> list[Row]:
    """Ask which section of the archive a line belongs to."""
    return balanced(
        (
            Row(said[name].line, (program.section,), groups=(program.source,))
            for name, program in known.items()
            if name in said
            and program.section not in NO_FIELD
            and not NAMED.match(name)
            and len(said[name].line) > LINE
        ),
        least=250,
    )


def tagged(known: dict[str, Program], said: dict[str, Description], facet: str) -> list[Row]:
    """Ask for the one tag of a facet that a program has."""
    rows = []
    for name, program in known.items():
        tags = [tag.removeprefix(f"{facet}::") for tag in program.tags if tag.startswith(f"{facet}::")]
        if name in said and len(tags) == 1 and len(said[name].line) > LINE:
            asked = f"{name}, {said[name].line}" if facet == "implemented-in" else said[name].line
            rows.append(Row(asked, (tags[0],), groups=(program.source,)))
    return balanced(rows, least=200)


def translated(known: dict[str, Program], said: dict[str, Description], other: dict[str, Description]) -> Iterator[Row]:
    """Pair English lines with their translations."""
    for name, description in other.items():
        if name in said and name in known and said[name].line != description.line and len(said[name].line) > LINE:
            yield Row(said[name].line, (description.line,), groups=(known[name].source,))


def _translated(language: str) -> Callable[[], Iterable[Row]]:
    return lambda: translated(archive(), described("en"), described(language))


def tasks() -> list[Task]:
    """List the tasks that contributors have."""
    field, source = "software", (PACKAGE,)
    return [
        Task("section", "skill", field, source, "choices", lambda: sections(archive(), described("en")),
             ("Program: {}\nSection?", "Which section of the archive has this: {}?"),
             ("{}\nOn which shelf would you look for such a program?",)),
        Task("programmed-in", "skill", field, source, "choices",
             lambda: tagged(archive(), described("en"), "implemented-in"), ("Program: {}\nWritten in?",),
             ("Which programming language was used for {}?",)),
        Task("role", "skill", field, source, "choices", lambda: tagged(archive(), described("en"), "role"),
             ("Package: {}\nRole?",)),
        *(
            Task(f"line-in-{language}".lower(), "skill", "translation", source, "bits", _translated(code),
                 (f"English: {{}}\n{language}:",), (f"Describe this in {language}: {{}}",) if code == "de" else ())
            for code, language in TARGETS.items()
        ),
    ]  # fmt: skip
