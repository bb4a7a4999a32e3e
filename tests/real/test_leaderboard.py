"""The page is what the record says, and the record takes nothing but results."""

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import Code, Refused
from tests.real import leaderboard
from tests.real.bench import report
from tests.real.bench.contributors import Contributor
from tests.real.bench.findings import Findings
from tests.real.bench.questions import Question
from tests.real.bench.score import Found, Scored
from tests.real.bench.shares import Told
from tests.real.bench.suite import Suite
from tests.real.tasks.task import Row

STAMP = {"commit": "0123456789ab", "date": "2026-12-01"}


def _document() -> dict[str, Any]:
    """What the bench itself makes of three rows of a table."""
    row = Row("a", ("b",))
    asked = (
        Question("riddle", "novel", "confirming", "exact", (row, row)),
        Question("both", "mixture", "confirming", "bits", (row, row), (), {"ada": 0.5, "bob": 0.5}),
    )
    suite = Suite("smoke", 7, "0123456789abcdef", (Contributor("ada", "ada"),), (), {}, (), asked)
    values = {"base": 0.0, "nnls-request": 1.0, "expert:ada": 1.0, "random gates, phatgoose": 0.5}
    scored = [
        Scored(name, {"riddle": Found([0.0, value], [1, 1]), "both": Found([2 - value] * 2, [1, 1])})
        for name, value in values.items()
    ]
    told = {"both": Told({"ada": [0.4, 0.4], "bob": [0.6, 0.6]}, [0.5, 0.5])}
    document: dict[str, Any] = json.loads(json.dumps(report.document(suite, "smollm2", Findings(scored, told))))
    return document


def _line(**changed: Any) -> str:
    return json.dumps(_document() | STAMP | changed)


def test_what_the_bench_makes_becomes_a_table() -> None:
    page = leaderboard.page(leaderboard.read([_line()]))
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == "| method |  | all | novel | mixture | nats | share error | commit | date |"
    end = "| `0123456789ab` | 2026-12-01 |"
    tied, nats = "50.0 [50.0, 50.0]", "1.00 [1.00, 1.00]"
    assert f"| nnls-request |  | {tied} | {tied} | {tied} | {nats} | 0.100 {end}" in rows
    assert f"| oracle | reference | {tied} | {tied} | {tied} | {nats} |  {end}" in rows
    assert any(row.startswith("| random gates, phatgoose | control | 25.0 ") for row in rows)
    assert "## smollm2, 1 experts, confirming half\n\nSuite `0123456789abcdef`, seed 7." in page
    # Best first.
    assert [row.split(" | ")[0] for row in rows[-2:]] == ["| random gates, phatgoose", "| base"]


def test_only_what_compares_shares_a_table_and_the_later_line_counts() -> None:
    other = _document()["methods"] | {"nnls-request": {"all": [12.5, 10, 15]}}
    lines = [_line(), _line(methods=other, date="2026-12-24"), _line(base="gemma", date="2026-12-05")]
    page = leaderboard.page(leaderboard.read(lines))
    assert [line for line in page.splitlines() if "experts, confirming" in line] == [
        "## smollm2, 1 experts, confirming half",
        "## gemma, 1 experts, confirming half",
    ]
    assert page.index("## smollm2") < page.index("## gemma")
    newest = page[page.index("## smollm2") : page.index("## gemma")]
    assert newest.count("| nnls-request |") == 1
    assert "| nnls-request |  | 12.5 [10.0, 15.0] |" in newest


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schema": 2}, "schema"),
        ({"suite": "<b>"}, "suite"),
        ({"methods": {"a|b": {}}}, "methods"),
        ({"methods": {"base": {"all": [5, 6, 7]}}}, "not around its mean"),
        ({"methods": {"base": {"all": [float("nan"), 0, 1]}}}, "not around its mean"),
        ({"commit": "main"}, "commit"),
        ({"experts": 0}, "experts"),
    ],
)
def test_what_is_no_result_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=rf"Line 2 is no result of the bench: .*{said}") as refusal:
        leaderboard.read([_line(), _line(**changed)])
    assert refusal.value.code is Code.DATA_UNREADABLE


def test_a_run_is_recorded_once_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    record, page, run = tmp_path / "record.jsonl", tmp_path / "page.md", tmp_path / "run.txt"
    asked = [str(run), "--record", str(record), "--page", str(page)]
    run.write_text(f"talk\n{json.dumps(_document())}\n")
    leaderboard.main(asked)
    leaderboard.main(asked)
    (line,) = record.read_text().splitlines()
    assert {"commit", "date"} < json.loads(line).keys()
    before = record.read_bytes(), page.read_bytes()
    for broken in ("", "talk", '{"schema": 1}', _line(half="a\nb")):
        run.write_text(broken)
        with pytest.raises(Refused):
            leaderboard.main(asked)
        assert (record.read_bytes(), page.read_bytes()) == before


def test_a_run_that_names_its_commit_keeps_it() -> None:
    kept = json.loads(leaderboard.stamped(_line(), "f" * 12, "2030-01-01"))
    assert (kept["commit"], kept["date"]) == ("0123456789ab", "2026-12-01")


def test_the_page_in_the_repository_is_what_its_record_says() -> None:
    kept = leaderboard.read(leaderboard.RECORD.read_text().splitlines())
    assert leaderboard.PAGE.read_text() == leaderboard.page(kept)
