"""Settings: one precedence, and nothing that is unknown."""

from pathlib import Path

import pytest

from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.errors import Code, Refused
from protocol.settings import dump_settings

KEY = "ab" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    given = ClientSettings(coordinator="127.0.0.1:7000", pool_key=KEY, base="base", name="anna")
    (tmp_path / "client.toml").write_bytes(dump_settings(given))
    return tmp_path / "client.toml"


def read(path: Path, **flags: object) -> ClientSettings:
    return ClientWorkspace(path.parent, **flags).settings


def test_file_below_environment_below_flags(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(path).input_column == "input"
    path.write_text(path.read_text() + 'input_column = "file"\n')
    assert read(path).input_column == "file"
    monkeypatch.setenv("GREYLAG_CLIENT_INPUT_COLUMN", "environment")
    assert read(path, input_column=None).input_column == "environment"
    assert read(path, input_column="flag").input_column == "flag"


def refusal(path: Path) -> Refused:
    with pytest.raises(Refused) as refused:
        read(path)
    return refused.value


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('colour = "grey"', "colour"),
        ('coordinator = "nowhere"', "coordinator"),
        ('pool_key = "abc"', "pool_key"),
        ('name = "No Name"', "name"),
        ("license = 3", "license"),
        ("half a line", "is not TOML"),
    ],
)
def test_a_wrong_file_is_a_sentence(path: Path, line: str, words: str) -> None:
    name = line.partition(" =")[0]
    kept = [old for old in path.read_text().splitlines() if not old.startswith(f"{name} =")]
    path.write_text("\n".join([*kept, line]))
    error = refusal(path)
    assert error.code is Code.SETTINGS_INVALID
    assert words in error.message


def test_an_unknown_variable_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYLAG_CLIENT_INPUT_COLUM", "question")
    error = refusal(path)
    assert error.code is Code.SETTINGS_INVALID
    assert "GREYLAG_CLIENT_INPUT_COLUMN" in error.hint


def test_no_file_is_no_workspace(tmp_path: Path) -> None:
    assert refusal(tmp_path / "client.toml").code is Code.WORKSPACE_MISSING
