"""What experts are tried on: given at the founding, found again by the worker, and no other canaries."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.workspace.create import BaseFacts, TrialFiles, found
from coordinator.workspace.material import CANARIES, ROWS, read_material
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.settings import load
from protocol.errors import Code, Refused
from tests.coordinator.cli.test_main import SHAPES
from tests.coordinator.cli.test_processes import BASE

LINES = ["copy : a"]


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows, each an input, or a chat, with its target."""

    def write(name: str, *lines: object) -> Path:
        (path := tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def found_with(folder: Path, **trial: Path) -> CoordinatorWorkspace:
    place, facts = CoordinatorWorkspace(folder), BaseFacts("nowhere", BASE, "encoder-decoder", SHAPES)
    pool = found(
        place, lambda: facts, name="p", choices={}, settings={}, trial=TrialFiles(**trial), now=datetime.now(UTC)
    )
    given = trial.get("canaries")
    digest = hashlib.sha256(given.read_bytes()).hexdigest() if given else None
    assert pool.spec.policy.review.canaries == digest
    return place


def test_rows_and_canaries_are_copied_and_found_again(tmp_path: Path, rows: Callable[..., Path]) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    public = rows("public.jsonl", {"input": "copy : a", "targets": ["a", "A"]}, {"messages": chat})
    private = rows("private.jsonl", {"input": "say\u2028it", "target": "c"})
    place = found_with(tmp_path / "pool", rows=public, canaries=private)
    settings, digest = load(place), hashlib.sha256(private.read_bytes()).hexdigest()
    public.unlink()
    private.unlink()
    found = read_material(LINES, settings.rows, settings.canaries, digest)
    assert found.lines == tuple(LINES)
    assert found.rows[ROWS].inputs == ("copy : a", [{"role": "user", "content": "a"}])
    assert found.rows[ROWS].targets == ("a", "b")
    assert found.rows[CANARIES].inputs == ("say\u2028it",)
    assert (place.folder / "canaries.jsonl").stat().st_mode & 0o777 == 0o600
    assert found.digest != read_material(LINES, settings.rows, None, None).digest


def test_lines_alone_are_enough(tmp_path: Path) -> None:
    settings = load(found_with(tmp_path / "pool"))
    assert read_material(LINES, settings.rows, settings.canaries, None).rows == {}


def test_other_canaries_than_the_pools_are_refused(tmp_path: Path, rows: Callable[..., Path]) -> None:
    place = found_with(tmp_path / "pool", canaries=rows("private.jsonl", {"input": "a", "target": "b"}))
    settings = load(place)
    digest = hashlib.sha256((place.folder / "canaries.jsonl").read_bytes()).hexdigest()
    for canaries, expected in (
        (rows("other.jsonl", {"input": "a", "target": "c"}), digest),
        (None, digest),
        (settings.canaries, None),
    ):
        with pytest.raises(Refused) as refused:
            read_material(LINES, settings.rows, canaries, expected)
        assert refused.value.code is Code.SETTINGS_INVALID


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", Code.DATA_EMPTY),
        (b"\xff", Code.DATA_UNREADABLE),
        (b'{"input": "a"}', Code.TASK_ROW),
        (None, Code.DATA_UNREADABLE),
    ],
)
@pytest.mark.parametrize("kind", ["rows", "canaries"])
def test_bad_rows_found_nothing(tmp_path: Path, content: bytes | None, code: Code, kind: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refused) as refused:
        found_with(tmp_path / "pool", **{kind: path})
    assert refused.value.code is code
    assert not (tmp_path / "pool").exists()
