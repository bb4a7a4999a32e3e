from pathlib import Path

import pytest

from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.settings import load
from protocol.errors import Code, Refused


@pytest.fixture
def workspace(tmp_path: Path) -> CoordinatorWorkspace:
    workspace = CoordinatorWorkspace(tmp_path)
    workspace.settings.write_text('base = "b"\nlisten = "127.0.0.1:1"\nworker_interval_s = 2.5\ntls_cert = "c.pem"\n')
    return workspace


def test_file_then_environment_then_flags(workspace: CoordinatorWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(workspace, listen=None).listen == "127.0.0.1:1"
    monkeypatch.setenv("GREYLAG_COORDINATOR_LISTEN", "127.0.0.1:2")
    assert load(workspace).listen == "127.0.0.1:2"
    assert load(workspace, listen="127.0.0.1:3").listen == "127.0.0.1:3"
    assert load(workspace).worker_interval_s == 2.5


def test_places_are_in_the_workspace(workspace: CoordinatorWorkspace, tmp_path: Path) -> None:
    settings = load(workspace)
    assert settings.database == f"sqlite:///{tmp_path}/registry.db"
    assert settings.store == str(tmp_path / "store")
    assert settings.probe == tmp_path / "probe.txt"
    assert settings.tls_cert == tmp_path / "c.pem"
    assert settings.tls_key is None


def test_a_relative_store_or_database_is_in_the_workspace_wherever_one_stands(
    workspace: CoordinatorWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for at in (workspace, CoordinatorWorkspace(Path(".."))):
        at.settings.write_text('base = "b"\nstore = "blobs"\ndatabase = "sqlite:///r.db"\n')
        settings = load(at)
        assert (settings.store, settings.database) == (str(tmp_path / "blobs"), f"sqlite:///{tmp_path}/r.db")
    url = "postgresql://ada:word@host/r"
    workspace.settings.write_text(f'base = "b"\nstore = "s3://bucket/blobs"\ndatabase = "{url}"\n')
    settings = load(workspace)
    assert (settings.store, settings.database) == ("s3://bucket/blobs", url)


@pytest.mark.parametrize(
    ("text", "word"),
    [('base = "b"\nlisen = "x"', "lisen"), ("base = 3", "base"), ("", "base"), ("base = ", "TOML"), ("\xff", "TOML")],
)
def test_a_wrong_file_is_one_sentence(workspace: CoordinatorWorkspace, text: str, word: str) -> None:
    workspace.settings.write_bytes(text.encode("latin-1"))
    with pytest.raises(Refused) as refused:
        load(workspace)
    assert refused.value.code is Code.SETTINGS_INVALID
    assert word in refused.value.message
    assert refused.value.hint


def test_an_unknown_variable_is_refused(workspace: CoordinatorWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYLAG_COORDINATOR_LISEN", "127.0.0.1:2")
    with pytest.raises(Refused) as refused:
        load(workspace)
    assert refused.value.code is Code.SETTINGS_INVALID
    assert "GREYLAG_COORDINATOR_LISEN" in refused.value.message


def test_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        load(CoordinatorWorkspace(tmp_path))
    assert refused.value.code is Code.WORKSPACE_MISSING


@pytest.mark.parametrize("name", ["_env_file", "_secrets_dir", "_cli_parse_args", "listne"])
def test_what_is_no_setting_is_refused(workspace: CoordinatorWorkspace, name: str) -> None:
    workspace.settings.write_text(f'base = "b"\n{name} = "x"\n')
    with pytest.raises(Refused, match=rf"setting {name} is wrong: there is no such entry\.") as refused:
        load(workspace)
    assert refused.value.code is Code.SETTINGS_INVALID
    assert refused.value.hint == "Remove it."
