"""Plain text by language and register: the grid in which a cell can be held out while its row and column are covered.

The same manual page, chapter or program in another language lies on the same side, whatever its language.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.real.packages import files_of
from tests.real.tasks.compressed import text_of
from tests.real.tasks.debian import PACKAGE as INDEX
from tests.real.tasks.debian import archive, described
from tests.real.tasks.task import Row, Task

LANGUAGES = ("cs", "da", "de", "en", "es", "fr", "it", "pl", "pt", "ru")
REGISTERS = ("aphorism", "description", "handbook", "installation", "manual")
LACKING = {("cs", "handbook"), ("da", "aphorism"), ("da", "handbook"), ("fr", "aphorism"), ("pl", "installation")}
"""Cells of which Debian has no text, or little that was translated."""
HANDBOOKS = {"cs": "cs-CZ", "da": "da-DK", "de": "de-DE", "en": "en-US", "es": "es-ES", "fr": "fr-FR", "it": "it-IT",
             "pl": "pl-PL", "pt": "pt-BR", "ru": "ru-RU"}  # fmt: skip
SHARED = {"description": INDEX, "handbook": "debian-handbook", "installation": "installation-guide-amd64"}
"""Packages of all languages; others have a package for each, with the language in its name."""
NAMED = {"manual": ("manpages", "pt-br"), "aphorism": ("fortunes", "br")}
ENGLISH_ONLY = {"manual": ("manpages", "manpages-dev"), "aphorism": ("fortunes", "fortunes-min")}
RUDE = {"debian", "drugs", "ethnic", "men-women", "off", "vulgarity"}
"""Collections of sayings that stay out."""
TOGETHER = 10
"""Sayings that lie on one side."""
LENGTHS = range(400, 1200)
"""Bytes of a document: paragraphs are joined until it has enough, and one that alone has too many is left out."""
PARAGRAPH = 40
"""Fewest characters of a paragraph that is one."""
ENGLISH = {"the", "of", "and", "that", "with", "this", "be", "are", "is", "not", "when", "you", "from", "can", "which"}
FOREIGN = 0.08
"""Share of English words from which on a paragraph was not translated."""

SIGNS = {
    "aq": "'",
    "lq": '"',
    "rq": '"',
    "oq": "'",
    "cq": "'",
    "ga": "`",
    "ha": "^",
    "ti": "~",
    "co": "(c)",
    "em": "-",
    "bu": "*",
}
"""Of troff."""

FONT = re.compile(r"^\.([BIR]{1,2}) (.*)")

Page = tuple[str, list[str]]
"""What it is about, which is the same in every language, and its paragraphs."""


def documents(pages: Iterable[Page], language: str) -> Iterator[Row]:
    """Join paragraphs of a page to documents, each a row that asks nothing."""
    for group, paragraphs in pages:
        text = ""
        for paragraph in (" ".join(each.split()) for each in paragraphs):
            if len(paragraph) < PARAGRAPH or (language != "en" and _share_of_english(paragraph) > FOREIGN):
                continue
            text = f"{text}\n\n{paragraph}" if text else paragraph
            if len(text.encode()) >= LENGTHS.start:
                if len(text.encode()) in LENGTHS:
                    yield Row("", (text,), groups=(group,))
                text = ""


def _share_of_english(paragraph: str) -> float:
    words = re.findall(r"\w+", paragraph.casefold())
    return sum(word in ENGLISH for word in words) / max(len(words), 1)


def troff(source: str) -> list[str]:
    """Read the running text of a manual page; synopses, options and examples are not running text."""
    text = re.sub(r"\\(?:f\(?.|f\[\w*\]|[&/,%^|:]|\*\(..|s[-+]?\d)", "", source)
    text = re.sub(r"\\(?:\((..)|\[(\w+)\])", lambda found: SIGNS.get(found[1] or found[2], ""), text)
    text = re.sub(r"\\([- e])", lambda found: found[1].replace("e", "\\"), text)
    text = re.sub(r"^\.(?:nf|EX)\n.*?^\.(?:fi|EE)$", ".PP", text, flags=re.MULTILINE | re.DOTALL)
    found = []
    for block in re.split(r"^\.(?:PP|P|LP|TP|IP|SH|SS|Pp|Sh|It|HP|RS|RE|br|sp)\b.*\n", text, flags=re.MULTILINE):
        lines = (FONT.sub(_words, line) for line in block.splitlines())
        found.append(" ".join(line for line in lines if not line.startswith((".", "'"))))
    return [each for each in found if each.rstrip().endswith((".", ":", "!", "?")) and each.count(" ") > 5]


def _words(found: re.Match[str]) -> str:
    """Join the arguments of a macro for fonts: two fonts in turn leave no space between them."""
    arguments = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', found[2])]
    return (" " if len(found[1]) == 1 else "").join(arguments)


def paragraphs(page: str) -> list[str]:
    """Read the paragraphs of an HTML page."""
    found = re.findall(
        r'<(p|div class="para"|div class="simpara")(?: [^>]*)?>(.*?)(?=</p>|</div>|<pre|<div|<ul)', page, re.DOTALL
    )
    return [" ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split()) for _, text in found]


def sources(language: str, register: str) -> tuple[str, ...]:
    """Name the packages of a cell."""
    if register in SHARED:
        return (SHARED[register],)
    name, portuguese = NAMED[register]
    if language == "en":
        return ENGLISH_ONLY[register]
    return (f"{name}-{portuguese if language == 'pt' else language}",)


def pages(language: str, register: str) -> Iterator[Page]:
    """Read all pages of a cell."""
    return READERS[register](language)


def _manual(language: str) -> Iterator[Page]:
    for name in sources(language, "manual"):
        for path in sorted(files_of(name).rglob("man?/*.gz")):
            yield f"manual {path.name}", troff(text_of(path))


def _description(language: str) -> Iterator[Page]:
    known = archive()
    for name, said in sorted(described("pt_BR" if language == "pt" else language).items()):
        if name in known:
            yield known[name].source, said.text.split("\n\n")


def _aphorism(language: str) -> Iterator[Page]:
    for name in sources(language, "aphorism"):
        for path in sorted(each for each in files_of(name).rglob("games/fortunes/**/*") if each.is_file()):
            if path.suffix in ("", ".fortunes") and not {*path.parts} & RUDE:
                texts = re.split(r"^%\n", _decoded(path.read_bytes()), flags=re.MULTILINE)
                for at in range(0, len(texts), TOGETHER):
                    yield f"{name} {path.name} {at}", texts[at : at + TOGETHER]


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _handbook(language: str) -> Iterator[Page]:
    html_files = files_of("debian-handbook") / "usr/share/doc/debian-handbook/html"
    return _book("debian-handbook", html_files / HANDBOOKS[language], html_files / HANDBOOKS["en"])


def _installation(language: str) -> Iterator[Page]:
    name = "installation-guide-amd64"
    files = files_of(name) / "usr/share/doc" / name
    return _book(name, files / language, files / "en")


def _book(name: str, folder: Path, original: Path) -> Iterator[Page]:
    """Read a book page by page, without what still stands there in English."""
    for path in sorted(folder.glob("*.html")):
        english = original / path.name
        left = (
            set(paragraphs(english.read_text(encoding="utf-8"))) if folder != original and english.is_file() else set()
        )
        found = paragraphs(path.read_text(encoding="utf-8"))
        yield f"{name} {path.name}", [each for each in found if each not in left]


READERS: dict[str, Callable[[str], Iterator[Page]]] = {
    "aphorism": _aphorism, "description": _description, "handbook": _handbook, "installation": _installation,
    "manual": _manual,
}  # fmt: skip


def _read(language: str, register: str) -> Callable[[], Iterator[Row]]:
    return lambda: documents(pages(language, register), language)


def tasks() -> list[Task]:
    """List the cells of the grid."""
    return [
        Task(f"{language}/{register}", "cell", language, sources(language, register), "bits", _read(language, register))
        for language in LANGUAGES
        for register in REGISTERS
        if (language, register) not in LACKING
    ]
