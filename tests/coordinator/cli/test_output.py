"""What strangers wrote stands in tables as text, whatever it would do to a terminal."""

import pytest

from coordinator.cli.output import table


def test_a_cell_neither_steers_the_terminal_nor_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table(["name", "reason"], [["\x1b]52;c;aGE=\x07ada", "[red]a\u202eb[/]"]])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"\x1b]52;c;aGE=\x07ada" in shown
    assert r"[red]a\u202eb[/]" in shown
