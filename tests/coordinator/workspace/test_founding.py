"""Which database and store a pool lives in: said once, found again, never another pool's, never a second one."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from coordinator.storage.blobs import Store
from coordinator.workspace.context import opened
from coordinator.workspace.create import BaseFacts, found
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.settings import load
from protocol.documents import Pool, read_pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Means, Statistics
from router.follow.pull import pull
from router.methods.features.background import PublicText
from router.model.routed_model import RoutedModel
from tests import factories
from tests.coordinator.cli.test_main import SHAPES, Program, program, refused
from tests.coordinator.cli.test_processes import BASE, serving
from tests.coordinator.contributor import Contributor

__all__ = ["program"]


def make(folder: Path, **settings: Any) -> tuple[CoordinatorWorkspace, Pool]:
    facts = BaseFacts("nowhere", BASE, "encoder-decoder", SHAPES)
    place = CoordinatorWorkspace(folder)
    pool = found(place, lambda: facts, name="p", choices={}, settings=settings, now=datetime.now(UTC))
    return place, pool


def test_a_database_takes_one_pool(tmp_path: Path, database_url: str) -> None:
    first, _ = make(tmp_path / "first", database=database_url)
    with pytest.raises(Refused) as second:
        make(tmp_path / "second", database=database_url)
    assert second.value.code is Code.WORKSPACE_EXISTS
    assert not (tmp_path / "second").exists()
    with opened(first, load(first)) as open_:
        assert open_.registry.contributors.all() == []


def test_what_cannot_be_founded_leaves_a_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = BaseFacts("nowhere", BASE, "encoder-decoder", SHAPES, statistics=b"means")
    why = Refused(Code.WORKSPACE_EXISTS, "Another pool was quicker.", "Give an empty database.")
    monkeypatch.setattr("coordinator.registry.registry.Registry.claim", Mock(side_effect=why))
    (note := tmp_path / "note").write_text("mine")
    with pytest.raises(Refused) as refused:
        found(
            CoordinatorWorkspace(tmp_path), lambda: facts, name="p", choices={}, settings={},
            now=datetime.now(UTC),
        )  # fmt: skip
    assert refused.value is why
    assert list(tmp_path.iterdir()) == [note]


def test_a_workspace_never_works_on_another_pools_registry(
    program: Program, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "first", database=database_url)
    second, _ = make(tmp_path / "second")
    monkeypatch.setenv("GREYLAG_COORDINATOR_DATABASE", database_url)
    for verb in (["experts", "ls"], ["serve"], ["fsck"]):
        assert program(second, *verb) == Code.SETTINGS_INVALID.fate.exit
        refused(program, Code.SETTINGS_INVALID)
        assert "another pool" in program.err


def test_what_init_was_given_is_found_again(
    program: Program, tmp_path: Path, t5_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    workspace = CoordinatorWorkspace(tmp_path / "w")
    given = ["--database", "sqlite:///data/r.db", "--store", "data/store"]
    assert program(workspace, "init", "--single", "--name", "p", "--base", str(t5_base), *given) == 0
    monkeypatch.chdir(tmp_path / "data")
    settings = load(workspace)
    assert settings.database == f"sqlite:///{tmp_path / 'data' / 'r.db'}"
    assert settings.store == str(tmp_path / "data" / "store")
    assert program(workspace, "experts", "ls") == 0
    assert not list(tmp_path.rglob("registry.db"))


def test_a_folder_that_moves_takes_its_registry_along(tmp_path: Path) -> None:
    workspace, _ = make(tmp_path / "here")
    assert set(tomllib.loads(workspace.settings.read_text())) == {"base"}
    moved = CoordinatorWorkspace(workspace.folder.rename(tmp_path / "there"))
    with opened(moved, load(moved)) as open_:
        assert open_.settings.store == str(tmp_path / "there" / "store")


def test_a_missing_registry_is_named_and_not_made_anew(program: Program, tmp_path: Path) -> None:
    workspace, _ = make(tmp_path / "w")
    database = workspace.folder / "registry.db"
    database.rename(tmp_path / "elsewhere.db")
    for verb in (["serve"], ["experts", "ls"], ["fsck"], ["migrate"]):
        assert program(workspace, *verb) == Code.WORKSPACE_MISSING.fate.exit
        refused(program, Code.WORKSPACE_MISSING)
        assert str(database) in program.err
        assert not database.exists()


def test_an_empty_database_is_no_registry(program: Program, tmp_path: Path, database_url: str) -> None:
    workspace, _ = make(tmp_path / "w")
    if database_url.startswith("sqlite"):
        (tmp_path / "registry.db").touch()
    text = workspace.settings.read_text()
    workspace.settings.write_text(f'{text}database = "{database_url}"\n')
    for verb in (["experts", "ls"], ["migrate"]):
        assert program(workspace, *verb) == Code.WORKSPACE_MISSING.fate.exit
        refused(program, Code.WORKSPACE_MISSING)


def test_what_is_wrong_with_a_database_is_said(program: Program, tmp_path: Path, t5_base: Path, postgres: str) -> None:
    workspace = CoordinatorWorkspace(tmp_path / "w")
    for url, word in (
        (f"sqlite:///{tmp_path}/no-such-folder/r.db", "no-such-folder"),
        (f"{postgres}/no-such-database", "no-such-database"),
    ):
        begin = ["init", "--single", "--name", "p", "--base", str(t5_base), "--database", url]
        assert program(workspace, *begin) == Code.SETTINGS_INVALID.fate.exit
        refused(program, Code.SETTINGS_INVALID)
        assert word in program.err
        assert not workspace.folder.exists()


def test_a_password_is_for_the_operators_eyes(tmp_path: Path, database_url: str) -> None:
    workspace, _ = make(tmp_path / "w", database=database_url)
    assert workspace.settings.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_postgresql_by_environment_only(
    program: Program, tmp_path: Path, database_url: str, t5_base: Path, identity: Identity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("GREYLAG_COORDINATOR_DATABASE", database_url)
    workspace = CoordinatorWorkspace(tmp_path / "w")
    assert program(workspace, "init", "--single", "--name", "p", "--base", str(t5_base)) == 0
    pool = read_pool(workspace.pool.read_bytes())
    bundle = factories.make_bundle(tmp_path / "b", pool, identity)
    with serving(workspace) as (_, channel):
        ada = Contributor(channel, identity)
        ada.enrol(pool, "ada")
        ada.submit(bundle)
    for verb in (["worker", "--once"], ["fsck"]):
        assert program(workspace, *verb) == 0, program.err
    (listed,) = program.json(workspace, "experts", "ls")["experts"]
    assert (listed["digest"], listed["state"]) == (bundle.digest, "released")
    monkeypatch.delenv("GREYLAG_COORDINATOR_DATABASE")  # init wrote it down
    assert program.json(workspace, "experts", "ls")["experts"] == [listed]
    assert not (workspace.folder / "registry.db").exists()


def test_what_the_environment_names_is_in_the_workspace(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_COORDINATOR_DATABASE", "sqlite:///r.db")
    monkeypatch.setenv("GREYLAG_COORDINATOR_STORE", "blobs")
    workspace, _ = make(tmp_path / "w")
    monkeypatch.chdir(tmp_path)
    assert program(workspace, "fsck") == 0
    assert {"r.db", "blobs"} <= {path.name for path in workspace.folder.iterdir()}


@pytest.mark.parametrize("layers", [(), ("--layers", "1")])
def test_a_pool_that_asks_for_means_tells_what_they_are_held_against(
    program: Program,
    tmp_path: Path,
    t5_base: Path,
    identity: Identity,
    layers: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (text := tmp_path / "text").write_text("say a b\nreverse c d\ncopy e f\n")
    place, base = CoordinatorWorkspace(tmp_path / "w"), ("--single", "--name", "p", "--base", str(t5_base), *layers)
    assert program(place, "init", *base, "--public-text", str(text)) == Code.SETTINGS_INVALID.fate.exit
    text.write_text("one line\n")
    means = ("--statistics", "means", "--public-text", str(text))
    assert program(place, "init", *base, *means) == Code.DATA_UNREADABLE.fate.exit
    assert not place.folder.exists()
    text.write_text("say a b\nreverse c d\ncopy e f\n")
    assert program(place, "init", *base, *means) == 0
    pool = read_pool(place.pool.read_bytes())
    assert pool.spec.statistics
    assert program.json(place, "fsck", "--delete", "0")["files"] == 1  # before any bundle, and it stays
    bundle = factories.make_bundle(tmp_path / "b", pool, identity, statistics=Statistics(means=Means()))
    with serving(place) as (_, channel):
        ada = Contributor(channel, identity)
        ada.enrol(pool, "ada")
        ada.submit(bundle)
        assert program(place, "worker", "--once") == 0
        address = channel._channel.target().decode().removeprefix("dns:///")  # type: ignore[attr-defined]
        mirror = pull(tmp_path / "node", address)
    monkeypatch.setattr(PublicText, "_samples", Mock(side_effect=AssertionError("public text is read again")))
    model = RoutedModel.from_mirror(str(t5_base), mirror, device="cpu")
    assert model.generation.settings.method == "nnls-request"
    assert len(model.generate(["say a b"])) == 1
    assert program(place, "fsck") == 0
    Store(str(place.folder / "store")).remove(pool.spec.statistics.sha256)
    assert program(place, "fsck") == Code.DIGEST_MISMATCH.fate.exit
    assert pool.spec.statistics.sha256[:16] in program.err


@pytest.mark.parametrize(
    ("base", "arguments", "method"),
    [
        ("t5_base", [], "phatgoose"),
        ("t5_base", ["--statistics", "centroid"], "phatgoose"),
        ("t5_base", ["--statistics", "centroid", "--statistics", "means"], "nnls-request"),
        ("llama_base", ["--statistics", "means"], "nnls-cautious"),
        ("llama_base", ["--statistics", "means", "--method", "phatgoose"], "phatgoose"),
    ],
)
def test_a_pool_that_asks_for_means_routes_by_them(
    program: Program, tmp_path: Path, request: pytest.FixtureRequest, base: str, arguments: list[str], method: str
) -> None:
    workspace, at = CoordinatorWorkspace(tmp_path / "pool"), str(request.getfixturevalue(base))
    assert program(workspace, "init", "--single", "--name", "birds", "--base", at, *arguments) == 0
    pool = read_pool(workspace.pool.read_bytes(), Identity.load(workspace.key).public)
    assert pool.spec.routing.method == method
