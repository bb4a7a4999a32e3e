"""Files appear whole, whoever writes them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.errors import Code, Refused
from protocol.files.atomic import new_folder, renew_secret, sweep, write_whole


def test_of_several_writers_the_last_one_wins_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "status.json"
    contents = [bytes([65 + number]) * 20_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            list(pool.map(lambda content: write_whole(path, content), contents))
            assert path.read_bytes() in contents
    assert [each.name for each in path.parent.iterdir()] == ["status.json"]


def test_what_a_kill_left_is_swept_up_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    for name in ("spec.json", ".spec.json.99.tmp", ".other.json.99.tmp"):
        (tmp_path / name).write_text("x")
    sweep(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".other.json.99.tmp", "spec.json"]


def test_a_secret_that_a_kill_left_half_written_is_renewed(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"half")
    renew_secret(path)
    first = path.read_bytes()
    renew_secret(path)
    assert len(first) == len(path.read_bytes()) == 32
    assert first != path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "made"
    (tmp_path / ".made.part").mkdir()
    (tmp_path / ".made.part" / "left by a kill").touch()
    with pytest.raises(FileNotFoundError), new_folder(place) as partial:
        (partial / "half" / "way").mkdir()
    assert list(tmp_path.iterdir()) == []
    place.mkdir()  # an empty one is as good as none
    with new_folder(place) as partial:
        (partial / "whole").touch()
        assert list(place.iterdir()) == []
    assert [each.name for each in place.iterdir()] == ["whole"]


def test_a_folder_never_replaces_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").touch()
    (tmp_path / "file").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("full", "file", "here", "here/../here"):
        with pytest.raises(Refused) as refused, new_folder(tmp_path / name):
            pytest.fail("it was taken")
        assert refused.value.code is Code.WORKSPACE_EXISTS
    assert (tmp_path / "full" / "thesis").exists()
