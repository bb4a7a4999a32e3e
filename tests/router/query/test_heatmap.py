"""Heat maps: a picture, and a page that a stranger's text cannot break out of."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from protocol.errors import Code, Refused
from router.query.answer import Answer, Answered, ModuleRoute
from router.query.attribution import Panel
from router.query.heatmap import save_page, save_png

HOSTILE = "</script><script>alert(1)</script>"
EXPERTS = ("ada/reverse", HOSTILE)


def route(module: str, experts: list[int], *, reads_input: bool) -> ModuleRoute:
    """Give each token wholly to one expert."""
    return ModuleRoute(module, reads_input, np.array(experts)[:, None], np.ones((len(experts), 1), dtype=np.float32))


ROUTES = (route("encoder.q", [0, 1], reads_input=True), route("decoder.q", [1, 1], reads_input=False))


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    save_png([Panel("a", ROUTES, oracle=1), Panel("b", ROUTES)], EXPERTS, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="No module chose an expert for 'b'") as refused:
        save_png([Panel("a", ROUTES), Panel("b", [])], EXPERTS, tmp_path / "map.png")
    assert refused.value.code is Code.REQUEST_INVALID
    assert not (tmp_path / "map.png").exists()


def test_every_panel_is_labelled_with_its_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    save_png([Panel("a", ROUTES), Panel("b", ROUTES[:1]), Panel("c", ROUTES)], EXPERTS, tmp_path / "map.png")
    labels = [[label.get_text() for label in axis.get_yticklabels()] for axis in drawn[0].axes[:3]]
    assert labels == [["encoder.q", "decoder.q"], ["encoder.q"], ["", ""]]


def test_colours_reach_the_largest_weight_of_all_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    faint = route("encoder.q", [0, 1, 1, 1], reads_input=True)
    save_png([Panel("a", [faint]), Panel("b", ROUTES[:1])], EXPERTS, tmp_path / "map.png")
    assert {axis.images[0].get_clim() for axis in drawn[0].axes[:2]} == {(0.0, 0.75)}


def test_a_page_carries_its_data_as_data(tmp_path: Path) -> None:
    answer = Answer("y", 3, "phatgoose", ("in0", HOSTILE), ("out0", "out1"), ROUTES)
    save_page([Panel("a", ROUTES, oracle=0, score=0.5)], Answered(EXPERTS, (answer,)), tmp_path / "p")
    page = (tmp_path / "p").read_text()
    assert page.count("<script") == 2
    assert "alert(1)</script>" not in page
    found = re.search(r'<script type="application/json" id="data">(.*)</script>', page)
    assert found is not None
    data = json.loads(found[1])
    assert data["experts"] == list(EXPERTS)
    (panel,) = data["panels"]
    assert (panel["modules"], panel["weights"], panel["oracle"]) == (
        ["encoder.q", "decoder.q"],
        [[0.5, 0.5], [0.0, 1.0]],
        0,
    )
    (request,) = data["requests"]
    assert [token["experts"] for token in request["input"]] == [[[0, 1.0]], [[1, 1.0]]]
    assert [token["experts"] for token in request["output"]] == [[[1, 1.0]], []]
