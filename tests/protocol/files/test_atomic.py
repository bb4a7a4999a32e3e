"""Files appear whole, whoever writes them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from protocol.files.atomic import sweep, write_whole


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
