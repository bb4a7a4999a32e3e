"""The whole bench on a made-up suite and tiny bases, as its user runs it: from rows to tables, cut off and taken up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories import make_llama, make_t5
from tests.real.bench import __main__ as bench
from tests.real.bench import suite
from tests.real.bench.contributors import Contributor
from tests.real.bench.questions import Question
from tests.real.tasks.task import Row

LETTERS = "abcdefgh"
KNOWN = [Contributor("copy", "copy"), Contributor("reverse", "reverse"), Contributor("say", "say")]


def _rows(task: str, start: int, count: int) -> list[Row]:
    found = []
    for at in range(start, start + count):
        word = [LETTERS[(at // 8**place + place) % 8] for place in range(3)]
        target = word[::-1] if task == "reverse" else word
        found.append(Row(f"please {task} : {' '.join(word)}", (" ".join(target),)))
    return found


def _question(name: str, family: str, half: str, metric: str, rows: list[Row], **own: float) -> Question:
    return Question(name, family, half, metric, tuple(rows[:4]), tuple(rows[4:7]), own)  # type: ignore[arg-type] # one of each


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Keep a suite where the bench looks for one that was drawn."""
    choices = [Row(row.input, row.targets, (*row.targets, "a a a")) for row in _rows("copy", 200, 7)]
    questions = [_question(each.task, "held_in", "held-in", "exact", _rows(each.task, 100, 7)) for each in KNOWN]
    for half, start in (("tuning", 120), ("confirming", 150)):
        two = [
            Row(f"{a.input} ; {b.input}", a.targets)
            for a, b in zip(_rows("copy", start, 7), _rows("say", start, 7), strict=True)
        ]
        questions += [
            _question(f"mixed/{half}", "mixture", half, "bits", two, copy=0.5, say=0.5),
            _question(f"riddle/{half}", "novel", half, "choices", choices),
        ]
    private = {each.name: _rows(each.task, 0, 60) for each in KNOWN}
    public = _rows("rotate", 0, 40)
    suite.write(suite.place("smoke", 0, tmp_path), "smoke", 0, KNOWN, [], private, public, questions)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("make", "dtype"), [(make_llama, "bfloat16"), (make_t5, "float32")])
def test_from_rows_to_tables(
    make: Callable[[Path], Path], dtype: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make(tmp_path / "base")
    asked = [
        "--base",
        str(base),
        "--layers",
        "1-1",
        "--size",
        "smoke",
        "--steps",
        "4",
        "--out",
        str(out),
        "--workers",
        "1",
        "--dtype",
        dtype,
    ]
    bench.main([*asked, "--pace", "--split"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["schema"], found["experts"], found["tasks"]) == (1, 3, {"tuning": 2, "confirming": 2})
    assert {"base", "phatgoose", "nnls-request", "oracle", "multitask", "fresh-lora", "base, 3 shots"} <= set(
        found["methods"]
    )
    assert "shuffled gates, phatgoose" in found["controls"]
    assert set(found["methods"]["phatgoose"]) == {"all", "novel", "mixture", "held_in", "nats"}
    assert 0 <= found["methods"]["nnls-request"]["share_error"] <= 1
    assert found.pop("pace")["1"]["phatgoose"] > 0
    assert set(found["growth"]["phatgoose"]) == {"all", "9 parts"}

    # A second run asks nothing again but what was cut off.
    (kept,) = out.glob("pool-*/scores-*/phatgoose.jsonl")
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:-1]) + lines[-1][:10])
    (pool,) = out.glob("pool-*")
    experts = {path: path.stat().st_mtime_ns for path in pool.rglob("adapter_model.safetensors")}
    bench.main([*asked, "--split"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {**found, "pace": {}}
    assert {path: path.stat().st_mtime_ns for path in pool.rglob("adapter_model.safetensors")} == experts
    table = next(out.glob("pool-*/scores-*.md")).read_text()
    assert "| copy |" in table
    assert "## Beside the oracle's routing" in table
    assert all(
        (next(out.glob("pool-*/scores-*.plots")) / f"{name}.png").is_file()
        for name in ("shares", "tuning", "phatgoose")
    )
