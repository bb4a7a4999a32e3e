"""Errors end a program in one sentence; nothing that a stranger wrote steers a terminal."""

import inspect
import json
import logging
import signal
import subprocess
import sys
import unicodedata

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from protocol import programs
from protocol.errors import Code, Refused
from protocol.printable import printable
from protocol.programs import configure_logs, end_child, needs, print_json, put, run, say, with_flags_of


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


def test_an_error_without_a_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        raise Refused(Code.QUOTA, "Full.")

    with pytest.raises(SystemExit):
        run(program)
    assert capsys.readouterr().err == "error: Full. [QUOTA]\n"


def test_a_program_that_ends_well_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run(lambda: None)
    assert capsys.readouterr() == ("", "")


OBEDIENT = "import sys; sys.stdout.write('up\\n'); sys.stdout.flush(); sys.stdin.read()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + OBEDIENT


@pytest.mark.parametrize(
    ("script", "at_once", "signalled"),
    [(OBEDIENT, False, signal.SIGTERM), (OBEDIENT, True, signal.SIGKILL), (DEAF, False, signal.SIGKILL)],
    ids=["asked", "at once", "deaf"],
)
def test_a_child_is_asked_to_go_and_then_made_to(
    script: str, signalled: int, monkeypatch: pytest.MonkeyPatch, *, at_once: bool
) -> None:
    monkeypatch.setattr(programs, "STOP_S", 0.2)
    child = subprocess.Popen([sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.stdin.write(b"what nobody reads")  # still in a buffer when the pipe breaks
    end_child(child, at_once=at_once)
    assert child.returncode == -signalled
    assert child.stdin.closed
    assert child.stdout.closed


def test_a_child_without_pipes_ends_too() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    end_child(child)
    assert child.returncode == -signal.SIGTERM


def test_a_verb_has_the_flags_of_others_before_its_own() -> None:
    def model(base: str, device: str = "cpu") -> None: ...

    @with_flags_of(model)
    def verb(question: str = "", **others: object) -> None: ...

    assert list(inspect.signature(verb).parameters) == ["base", "device", "question"]
    assert inspect.signature(verb).parameters["device"].default == "cpu"
    assert inspect.get_annotations(verb) == {"base": str, "device": str, "question": str, "return": None}


def test_what_is_not_installed_is_named_with_the_command_that_does() -> None:
    needs("json", "federation", "A campaign")
    with pytest.raises(Refused, match="A campaign needs no-such-module, which is not installed") as refused:
        needs("no_such_module", "federation", "A campaign")
    assert "'greylag[federation]'" in refused.value.hint


def test_logs_are_for_people_or_for_machines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    try:
        for as_json in (False, True):
            configure_logs(as_json=as_json, level=logging.WARNING)
            log = structlog.get_logger("x")
            log.info("quiet")
            log.warning("loud", bundle="4f")
    finally:
        structlog.configure(**before)
    plain, document = capsys.readouterr().err.splitlines()
    assert "loud" in plain
    assert "bundle=4f" in plain
    assert json.loads(document)["event"] == "loud"
