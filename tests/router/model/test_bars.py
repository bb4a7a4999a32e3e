"""Loading shows a bar on a terminal where a door asks for it, and nothing to who calls the library."""

import io
from contextvars import Context
from pathlib import Path

import pytest

from router.base.progress import show_bars
from router.model.opening import load_model
from tests.router.verbs import pulled_node


@pytest.mark.parametrize("saved", [False, True])
def test_whoever_loads_experts_sees_how_far_it_is_where_a_door_shows_it(
    t5_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, saved: bool
) -> None:
    node, folder = pulled_node(t5_base, tmp_path), tmp_path / "saved"
    load_model(node, None, [], {"device": "cpu"}, pytest.fail).save_pretrained(folder, with_base=True)

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("router.base.progress.PATIENCE_S", 0)

    def load() -> None:
        load_model(node, folder if saved else None, [], {"device": "cpu"}, pytest.fail)

    Context().run(load)
    assert terminal.getvalue() == ""

    def shown() -> None:
        show_bars()
        load()

    Context().run(shown)
    for what in ("Reading experts", "Loading experts"):
        assert f"{what}:   0%" in terminal.getvalue()
