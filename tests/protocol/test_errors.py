import ast
import copy
import errno
import os
from collections import Counter
from http import HTTPStatus
from pathlib import Path

import grpc
import pytest

from protocol import errors
from protocol.errors import Code, GreylagError, Refused, Unavailable, from_os_error
from tests.house.sources import ROOMS, ROOT, python_files

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
HEAD = """\
# Errors

Every refusal carries one of these codes: on the command line as exit status (sysexits.h) and sentence, over gRPC
as status and `google.rpc.ErrorInfo`, over HTTP as status. A code is never reused for another meaning. The table is
written from `protocol/errors.py` by `GREYLAG_UPDATE=1 pytest tests/protocol/test_errors.py`.

| code | meaning | exit | gRPC | HTTP |
|---|---|---|---|---|
"""


def table() -> str:
    rows = (
        f"| `{code.name}` | {code.fate.meaning} | {code.fate.exit} | {code.fate.grpc} | {code.fate.http} |\n"
        for code in Code
    )
    return HEAD + "".join(rows)


def test_the_page_shows_the_table() -> None:
    if os.environ.get("GREYLAG_UPDATE") == "1":
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(table())
    assert PAGE.read_text() == table(), "write it again with GREYLAG_UPDATE=1"


def test_no_two_codes_are_one() -> None:
    # Enum makes an alias, silently, of a member whose value stands already.
    assert list(Code.__members__) == [code.name for code in Code]


def test_no_two_codes_mean_the_same() -> None:
    assert {meaning for meaning, count in Counter(code.fate.meaning for code in Code).items() if count > 1} == set()


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_a_fate_is_one_that_every_door_knows(code: Code) -> None:
    assert code.fate.grpc in grpc.StatusCode.__members__
    assert code.fate.grpc != "OK"
    assert 400 <= HTTPStatus(code.fate.http) < 600
    assert 64 <= code.fate.exit <= 78
    assert code.fate.exit in {value for name, value in vars(errors).items() if name.startswith("EX_")}
    assert code.fate.meaning.endswith(".")
    assert "|" not in code.fate.meaning
    assert code.name == code.name.upper()


def test_exit_statuses_are_those_of_sysexits() -> None:
    ours = {name: value for name, value in vars(errors).items() if name.startswith("EX_")}
    assert {name: getattr(os, name) for name in ours} == ours


@pytest.mark.parametrize("code", [Code.QUOTA, Code.BUSY])
def test_an_error_says_code_sentence_and_hint(code: Code) -> None:
    error = code.family(code, "Eight experts are in.", "Withdraw one.")
    assert str(error) == f"{code.name}: Eight experts are in. Withdraw one."
    assert str(code.family(code, "Eight experts are in.")) == f"{code.name}: Eight experts are in."
    assert (error.code, error.message, error.hint) == (code, "Eight experts are in.", "Withdraw one.")
    assert isinstance(error, GreylagError)


@pytest.mark.parametrize("code", [Code.SETTINGS_INVALID, Code.MEMORY_FULL])
def test_an_error_comes_whole_out_of_another_process(code: Code) -> None:
    error = code.family(code, "No.", "Say yes.")
    found = copy.copy(error)  # by the same means as pickle
    assert type(found) is code.family
    assert vars(found) == vars(error)
    assert str(found) == str(error)


def test_the_families_are_told_apart() -> None:
    assert not issubclass(Refused, Unavailable)
    assert not issubclass(Unavailable, Refused)


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_a_code_is_raised_in_the_family_that_the_table_says(code: Code) -> None:
    right, wrong = (Unavailable, Refused) if code.fate.again else (Refused, Unavailable)
    assert type(right(code, "Why.")) is code.family is right
    with pytest.raises(ValueError, match=f"{code.name} is no {wrong.__name__}"):
        wrong(code, "Why.")


def test_no_line_names_a_code_in_the_wrong_family() -> None:
    """What runs seldom is found before it runs."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {called} with {named}"
        for path in python_files(*ROOMS, "tests")
        if path != Path(__file__)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and node.args
        for called, named in [(ast.unparse(node.func), ast.unparse(node.args[0]))]
        if called in ("Refused", "Unavailable") and named.startswith("Code.") and named[5:] in Code.__members__
        if Code[named[5:]].family.__name__ != called
    ]
    assert wrong == []


def test_an_error_of_the_system_is_a_sentence() -> None:
    assert from_os_error(OSError(errno.ENOSPC, "No space left on device")).code is Code.STORAGE_FULL
    gone = from_os_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"))
    assert gone.code is Code.SETTINGS_INVALID
    assert gone.message == "a.png cannot be used: No such file or directory."
