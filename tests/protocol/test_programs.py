"""Errors end a program in one sentence; nothing that a stranger wrote steers a terminal."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Code, Refused
from protocol.printable import printable
from protocol.programs import print_json, put, run, say


def test_a_refusal_is_a_sentence_a_hint_and_an_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        raise Refused(Code.NAME_TAKEN, "The name 'ada' is taken.", "Choose another name.")

    with pytest.raises(SystemExit) as ended:
        run(program)
    assert ended.value.code == Code.NAME_TAKEN.fate.exit
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: The name 'ada' is taken. [NAME_TAKEN]\nhint: Choose another name.\n"


def test_what_the_system_refuses_is_a_sentence_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(lambda: open("/nowhere/at/all"))  # noqa: PTH123, SIM115
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;aGE=\x07 ada", r"\x1b]52;c;aGE=\x07 ada"),  # writes into the clipboard
        ("\x1b[2J", r"\x1b[2J"),  # clears the screen
        ("a\u202ecba", r"a\u202ecba"),  # turns the rest around
        ("ada\u2028released", r"ada\u2028released"),
        ("a\u200bda", r"a\u200bda"),
        ("\x9b1A", r"\x9b1A"),
        ("\r", r"\r"),
        ("Zoë\tÅngström\n日本", "Zoë\tÅngström\n日本"),
    ],
)
def test_what_a_stranger_wrote_is_shown_and_not_obeyed(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printable(text) == shown
    say(text)
    put(text)
    assert capsys.readouterr() == (shown + "\n", shown + "\n")


@given(st.text())
def test_nothing_that_steers_is_left(text: str) -> None:
    left = {unicodedata.category(letter) for letter in printable(text)} - {"Cn"}
    assert not {kind for kind in left if kind[0] == "C"} - {"Cc"}
    assert {letter for letter in printable(text) if unicodedata.category(letter) == "Cc"} <= {"\n", "\t"}


def test_a_document_is_one_line_of_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "\x1b[2Jada"})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert "\x1b" not in shown
    assert json.loads(shown) == {"schema": 1, "name": "\x1b[2Jada"}
