"""Progress on stderr."""

import json

import pytest

from client.cli.progress import Style, _bars, _spaced, show
from client.progress import Progress


def test_json_lines_are_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    with show(Style.JSONL) as report:
        report(Progress("expert", 1, 200))
        report(Progress("expert", 200, 200, 0.51))
    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line) for line in err.splitlines()] == [
        {"event": "progress", "phase": "expert", "step": 1, "of": 200},
        {"event": "progress", "phase": "expert", "step": 200, "of": 200, "loss": 0.51},
    ]


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with show(Style.AUTO) as report:
        for step in range(1, 101):
            report(Progress("gates", step, 100, 0.25))
    assert capsys.readouterr().err == "gates: 1 of 100, loss 0.250\ngates: 100 of 100, loss 0.250\n"


def test_first_and_last_are_always_shown_and_once() -> None:
    seen: list[int] = []
    times = iter([0.0, 1.0, 5.0, 6.0, 6.1])
    report = _spaced(lambda event: seen.append(event.step), 5.0, lambda: next(times))
    for step in (1, 2, 3, 9, 9):
        report(Progress("upload", step, 9))
    assert seen == [1, 3, 9]


def test_a_terminal_gets_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with _bars() as report:
        report(Progress("expert", 1, 2, 1.5))
        report(Progress("expert", 2, 2, 0.5))
        report(Progress("upload", 10, 10))
    out, err = capsys.readouterr()
    assert out == ""
    assert "expert" in err
    assert "loss 0.500" in err
