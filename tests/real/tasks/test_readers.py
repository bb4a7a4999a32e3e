"""Each reader on a few lines of made-up text in its source's format."""

import json
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from protocol.errors import Code, Refused
from tests.real.tasks import (
    bigbench,
    code,
    compositions,
    debian,
    documents,
    freedict,
    places,
    reference,
    science,
    words,
)
from tests.real.tasks import wordnet as net
from tests.real.tasks.task import Row, balanced


def pairs(rows: object) -> dict[str, tuple[str, ...]]:
    return {row.input: row.targets for row in rows}  # type: ignore[attr-defined]


def test_bigbench_asks_as_its_file_says() -> None:
    example = {"input": "Two and two?", "target_scores": {"four ": 1, "five": 0, "4": 1}}
    row = bigbench.ask({}, example, random.Random(0))
    assert row.targets == ("four", "4")
    assert sorted(row.choices) == ["4", "five", "four"]
    assert row.input.startswith("Q: Two and two?\n  choice: ")
    assert row.input.endswith("\nA:")
    plain = {
        "task_prefix": "Add. ",
        "example_input_prefix": "",
        "example_output_prefix": " =",
        "append_choices_to_input": False,
    }
    assert bigbench.ask(plain, example, random.Random(0)).input == "Add. Two and two? ="
    assert bigbench.answers({"target_scores": {"a": 1, "a ": 1, "b": 0}}) == (("a",), ("a", "b"))
    assert bigbench.answers({"target": ["x ", "x", "y"]}) == (("x", "y"), ())


def test_bigbench_refuses_a_file_without_answers(tmp_path: Path) -> None:
    def written(said: object) -> Path:
        (tmp_path / "task.json").write_text(json.dumps(said))
        return tmp_path / "task.json"

    assert list(bigbench.read_files([written({"examples": [{"input": "a", "target": "b"}]})]))
    for said, sentence in (
        ({"examples": [{"input": "a"}]}, "has neither targets nor choices"),
        ({"examples": [{"input": "a", "target_scores": {}}]}, "has neither targets nor choices"),
        ({"name": "container"}, "There are no examples"),
    ):
        with pytest.raises(Refused, match=sentence) as refusal:
            list(bigbench.read_files([written(said)]))
        assert refusal.value.code is Code.TASK_ROW


def test_bigbench_is_bared_for_contributors() -> None:
    assert bigbench._bare(Row("q", ("Humans.",))).targets == ("Humans",)
    intent = bigbench._spoken(Row("Utterance: Rain?", ("get_rain",), ("get_rain", "get_sun")))
    assert intent == Row("Rain?", ("get rain",), ("get rain", "get sun"))
    goal = bigbench._goal(Row("The most reasonable goal of 'Boil it' is", ("Cook",), ("Sing", "Cook")))
    assert goal is not None
    assert goal.input == "Boil it\nGoals: Cook; Sing"
    keep = bigbench._found(r"The religion of (.*) is$")
    assert keep(Row("The religion of A is", ("B",))) == Row("A", ("B",))
    assert keep(Row("The colour of A is", ("B",))) is None
    assert bigbench._short(Row("x" * 500, ("y",))) is None


WORDNET = """  1 a licence
00000001 29 v 01 open 0 002 ! 00000002 v 0101 + 00000003 n 0101 01 + 08 00 | make accessible; "they open it"
00000002 29 v 02 shut 0 close_up 0 000 01 + 08 00 | make inaccessible
00000003 04 n 01 opening 0 001 @ 00000004 n 0000 | the act of opening
00000004 04 n 02 deed 0 human_action 0 000 | something done
00000005 02 r 01 openly 0 001 \\ 00000006 a 0101 | in an open way
00000006 00 a 01 overt(a) 0 000 | open and observable"""


def test_wordnet() -> None:
    known = dict(net.parse(WORDNET.splitlines()))
    assert known["v00000002"].words == ("shut", "close up")
    assert known["a00000006"].words == ("overt",)
    assert known["v00000001"].gloss == "make accessible"
    assert pairs(net.related(known, net.ANTONYM, "", "")) == {"open": ("shut",)}
    assert pairs(net.related(known, net.DERIVED, "verb", "noun")) == {"open": ("opening",)}
    assert pairs(net.related(known, net.PERTAINS, "adverb", "adjective")) == {"openly": ("overt",)}
    assert pairs(net.above(known, net.HYPERNYM)) == {"opening": ("deed", "human action")}
    assert pairs(net.kinds(known))["something done"] == ("noun",)
    assert pairs(net.defined(known))["something done"] == ("deed", "human action")


FREEDICT = """Haus /haus/ <neut, n, sg>
house <n>, building
 see: {Hausbau}

See /ze/ <masc, n, sg>
1. lake
2. mere, large lake
See /ze/ <fem, n, sg>
sea
auf See /aʊf/
at sea
"""


def test_freedict() -> None:
    assert pairs(freedict.words(FREEDICT))["Haus"] == ("house", "building")
    assert [row.targets for row in freedict.words(FREEDICT)][1:] == [("lake", "mere"), ("sea",)]
    assert pairs(freedict.genders(FREEDICT)) == {"Haus": ("neuter",)}


def test_words() -> None:
    forms = {"houses": "house", "went": "go", "cat": "cat", "ran": "run", "mice's": "mouse"}
    assert list(words.lemmas(forms)) == [Row("houses", ("house",), groups=("house",))]
    known = words.phones(["record R EH1 K ER0 D", "record(2) R IH0 K AO1 R D", "chord K AO1 R D # note", "ab AE1 B"])
    assert list(known) == ["record", "chord"]
    assert pairs(words.syllables(known)) == {"record": ("2",), "chord": ("1",)}
    assert pairs(words.stresses({word: ["AH0", "T", "EY1"] for word in ["x"] * words.RARE})) == {}
    many = {f"at{at}": ["AE1", "T"] for at in range(6)} | {f"in{at}": ["IH1", "N"] for at in range(6)}
    rhymed = words.rhymes(many, pairs=40)
    assert {row.targets[0] for row in rhymed} == {"yes", "no"}
    assert all((row.input[:2] == row.input.split(" and ")[1][:2]) == (row.targets == ("yes",)) for row in rhymed)
    told = words.feelings(["glad\t2.1\t0.5\t[1]", "sad\t-2.0\t0.5\t[1]", "table\t0.1\t0.5\t[1]", ":)\t2.0\t0.5\t[1]"])
    assert pairs(told) == {"glad": ("positive",), "sad": ("negative",)}
    named = words.names(
        ["M  Hugo                       9", "F  Ada                        9", "?M Kim                        9"]
    )
    assert pairs(named) == {"Hugo": ("male",), "Ada": ("female",)}


def test_places() -> None:
    known = [{"name": "Norway", "altSpellings": ["NO", "Norge", "Norvège"], "capital": "Oslo", "ISO": {"alpha2": "NO"}}]
    assert pairs(places.facts(known, "capital")) == {"Norway": ("Oslo",), "Norge": ("Oslo",)}
    assert pairs(places.facts(known, "demonym")) == {}
    assert pairs(places.codes(known)) == {"Norway": ("NO",), "Norge": ("NO",)}
    cities = {
        "1": {"name": "Bergen", "population": 290_000, "countrycode": "NO"},
        "2": {"name": "Voss", "population": 9_000, "countrycode": "NO"},
        "3": {"name": "Singapore", "population": 5_000_000, "countrycode": "SG"},
    }
    assert pairs(places.cities(cities, {"NO": "Norway", "SG": "Singapore"})) == {"Bergen": ("Norway",)}
    regions = [{"code": f"NO-{at}", "name": f"Fylke {at}"} for at in range(60)] + [{"code": "XX-1", "name": "Nowhere"}]
    assert set(pairs(places.regions(regions, {"NO": "Norway"}))) == {f"Fylke {at}" for at in range(60)}


PACKAGES = """Package: moon-dev
Source: moon-1.2 (1.2-1)
Section: main/science
Tag: implemented-in::c, role::devel-lib,
 use::viewing

Package: moon
Source: moon-1.3
Section: science
Tag: implemented-in::c"""
TRANSLATION = """Package: moon
Description-md5: 0123
Description-de: zeigt den Mond am Himmel
 Es zeigt den Mond
 und die Sterne.
 .
 Auch bei Tag.

Package: unknown
Description-de: kennt niemand"""


def test_debian() -> None:
    known = debian.programs(PACKAGES)
    assert known["moon"].source == known["moon-dev"].source == "moon-#"
    assert known["moon-dev"].section == "science"
    assert known["moon-dev"].tags == ("implemented-in::c", "role::devel-lib", "use::viewing")
    german = debian.descriptions(TRANSLATION)
    assert german["moon"] == debian.Description(
        "zeigt den Mond am Himmel", "Es zeigt den Mond und die Sterne.\n\nAuch bei Tag."
    )
    english = {"moon": debian.Description("shows the moon in the sky", "")}
    assert list(debian.translated(known, english, german)) == [
        Row("shows the moon in the sky", ("zeigt den Mond am Himmel",), groups=("moon-#",))
    ]
    many = {f"m{at}": debian.Program(f"m{at}", f"m{at}", "science", ("role::app",)) for at in range(250)}
    said = {name: debian.Description(f"shows moon number {name}", "") for name in many}
    assert {row.choices for row in debian.sections(many, said)} == {("science",)}
    assert {row.targets for row in debian.tagged(many, said, "role")} == {("app",)}


ICD = """<icd><chapter><desc>Diseases of the ear (H60-H95)</desc><section><diag><name>H60</name><desc>Otitis</desc>
<diag><name>H60.0</name><desc>Abscess of ear</desc></diag></diag></section></chapter></icd>"""
DEVICES = """8086  Intel Corporation
	0001  Fast Ethernet 100
	0002  Intel Board here
		8086 0001  Sub
C 01  Storage
	00  SCSI controller"""


def test_science(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(science, "balanced", lambda rows, least: list(rows))
    found = science.diagnoses(ET.fromstring(ICD))
    assert [(row.input, row.targets, row.groups) for row in found] == [
        ("Otitis", ("Diseases of the ear",), ("icd H60",)), ("Abscess of ear", ("Diseases of the ear",), ("icd H60",))
    ]  # fmt: skip
    assert science.devices(DEVICES.splitlines()) == [
        Row("Fast Ethernet 100", ("Intel",), groups=("Intel Fast Ethernet ",))
    ]
    line = "4\t78-96-6\tC3H9NO\t75.1\tCC\tInChI\tKEY\t1-azanyl\t1-amino-2-propanol\tmipa"
    assert list(science.compounds([line, "x\ty"])) == [Row("1-amino-2-propanol", ("C3H9NO",))]
    signs = {
        "🌧": {"en": ":cloud_with_rain:", "status": 2, "alias": [":rain:"]},
        "👍🏻": {"en": ":thumbs_up_light_skin_tone:", "status": 2},
        "🇳🇴": {"en": ":Norway:", "status": 2},
    }
    assert pairs(science.emoji(signs)) == {"🌧": ("cloud with rain", "rain")}


GCIDE = """
Abacus \\Ab"a*cus\\, n.; pl. {Abaci}. [L. abacus, Gr. ?.]
   1. A table strewn with sand. [Obs.]
      [1913 Webster]

   2. (Arch.) The uppermost member of the capital of a column,
      below the {architrave}.
      [1913 Webster]

Abask \\A*bask"\\, adv. [OE. baske.]
   In the sunshine.
"""
FOLDOC = "\n\nsieve\n\n   <tool, unix> Something that lets {small} things\n   through.\n\n"
VERA = "LDP\n       Linux Documentation Project (Linux)\n\nLDR\n       Resistor\n"


def test_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "balanced", lambda rows, least: list(rows))
    known = list(reference.entries(GCIDE))
    assert [entry.word for entry in known] == ["Abacus", "Abask"]
    assert reference.fields(iter(known)) == [
        Row(
            "Abacus: The uppermost member of the capital of a column, below the architrave",
            ("architecture",),
            groups=("Abacus",),
        )
    ]
    assert reference.origins(iter(known)) == [Row("abacus", ("Latin",))]
    assert reference.terms(FOLDOC) == [
        Row("sieve. Something that lets small things through.", ("tool",), groups=("sieve",))
    ]
    assert list(reference.acronyms(VERA)) == [Row("Linux Documentation Project", ("LDP",))]
    said = reference.sayings(
        {"work": "Short.\n%\nWork is what one does before lunch.\n%\n", "pets": "A cat may look at any king."}
    )
    assert pairs(said) == {"Work is what one does before lunch.": ("work",), "A cat may look at any king.": ("pets",)}


MODULE = '''
def add_all(values):
    """Add up every number
    of a list.

    More of it.
    """

def _own():
    """Do something that nobody needs."""

def sort():
    """Sort a list of many numbers."""
'''
PAGE = """.TH open 2 2023-02-05
.SH NAME
open, openat \\- open and possibly create a file
.SH SYNOPSIS
.nf
.B int open();
.fi
.SH DESCRIPTION
The
.BR open (2)
call opens the \\fIpath\\fP that one gives it, \\(lqas is\\(rq.
.TP
Short.
"""


def test_code() -> None:
    assert list(code.functions(MODULE)) == [code.Described("add_all", "Add up every number of a list.")]
    assert pairs(code.named({"a": code.functions(MODULE)})) == {"Add up every number of a list.": ("add_all",)}
    page = code.manual("2", PAGE)
    assert page == code.Manual("2", ("open", "openat"), "open and possibly create a file")
    assert code.manual("2", ".so man2/open.2") is None
    assert list(code.calls([page, page._replace(section="7")])) == [Row(page.purpose, ("open", "openat"))]


def test_documents() -> None:
    assert documents.troff(PAGE) == ['The open(2) call opens the path that one gives it, "as is".']
    html = '<p>Ein <em>kurzer</em> Satz &amp; mehr</p><pre>code</pre><div class="para">\n Noch einer </div><p>Last'
    assert documents.paragraphs(html) == ["Ein kurzer Satz & mehr", "Noch einer"]
    german = "Dieser Satz hat einige Wörter, und er wird wiederholt. " * 5
    english = "This is what the book says of the things that are not there. " * 5
    pages = [("book one", [german, english, german, "kurz", german * 9])]
    (row,) = documents.documents(pages, "de")
    assert row == Row("", (f"{german.strip()}\n\n{german.strip()}",), groups=("book one",))
    assert len(list(documents.documents([("book two", [english, english])], "en"))) == 1


def test_compositions() -> None:
    opposite = [Row("open", ("shut", "close")), Row("strange", ("known",)), Row("near", ("far",))]
    past = {"close": Row("close", ("closed",)), "far": Row("far", ("near",))}
    assert list(compositions.chained(opposite, past)) == [Row("open", ("closed",), groups=("open", "close"))]
    assert list(compositions.known_of(opposite, past)) == [Row("open", ("closed",))]
    said = [Row("the man eats", ("the man does not eat",)), Row("he sleeps", ("he does not sleep",))]
    asked = compositions.by_input([Row("the man eats", ("does the man eat",)), Row("he sleeps", ("is he asleep",))])
    assert list(compositions.negated_questions(said, asked)) == [Row("the man eats", ("does the man not eat",))]


def test_balance_is_by_answer_and_needs_no_order() -> None:
    rows = [Row(f"{at}", ("x" if at % 3 else "y",)) for at in range(90)]
    assert {row.input for row in balanced(rows)} == {row.input for row in balanced(rows[::-1])}
