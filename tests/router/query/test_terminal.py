"""What `--explain` shows: which token was read by whom."""

import io

import numpy as np
import pytest
from rich.console import Console

from router.query.answer import Answer, Answered, ModuleRoute
from router.query.terminal import as_json, explain

EXPERTS = ("ada/reverse", "bob/copy")


def route(module: str, experts: list[int], *, reads_input: bool) -> ModuleRoute:
    """Give each token wholly to one expert."""
    return ModuleRoute(module, reads_input, np.array(experts)[:, None], np.ones((len(experts), 1), dtype=np.float32))


def tokens_shown(*routes: ModuleRoute) -> list[list[str]]:
    """Rows of the table of tokens: token, side, experts."""
    answer = Answer("y", 4, "phatgoose", ("in0", "in1"), ("out0", "out1"), routes)
    screen = io.StringIO()
    explain(Console(file=screen, width=120), Answered(EXPERTS, (answer,)), answer)
    lines = [line.strip("│┃ ") for line in screen.getvalue().splitlines()]
    return [[cell.strip() for cell in line.split("│")] for line in lines if line.startswith(("in", "out"))]


def test_an_encoder_decoders_tokens_are_read_by_their_own_side() -> None:
    rows = tokens_shown(
        route("encoder.q", [0, 1], reads_input=True),
        route("decoder.q", [1, 0], reads_input=False),
        route("decoder.wi", [1, 1], reads_input=False),
    )
    assert rows == [
        ["in0", "input", "ada/reverse 100%"],
        ["in1", "input", "bob/copy 100%"],
        # A decoder reads a token one step after it wrote it; nobody reads the last.
        ["out0", "output", "ada/reverse 50%  bob/copy 50%"],
    ]


def test_a_decoder_never_reads_its_last_token() -> None:
    rows = tokens_shown(route("layers.0.q", [0, 0, 1], reads_input=True))
    assert rows == [
        ["in0", "input", "ada/reverse 100%"],
        ["in1", "input", "ada/reverse 100%"],
        ["out0", "output", "bob/copy 100%"],
    ]


@pytest.mark.parametrize("asked", [True, False])
def test_json_has_routes_only_if_they_were_asked_for(*, asked: bool) -> None:
    answer = Answer("y", 4, "phatgoose", ("in0",), ("out0",), (route("encoder.q", [1], reads_input=True),))
    document = as_json(Answered(EXPERTS, (answer,)), explain=asked)
    (said,) = document["answers"]
    assert (said["release"], said["method"], said["text"]) == (4, "phatgoose", "y")
    assert ("routes" in document["answers"][0]) == asked
    if asked:
        assert document["answers"][0]["shares"] == {"bob/copy": 1.0, "ada/reverse": 0.0}


def test_a_strangers_tokens_neither_steer_the_terminal_nor_turn_its_text_around() -> None:
    hostile = "\x1b]0;owned\x07\u202e"
    name, routes = f"eve/{hostile}", (route(f"layers.{hostile}", [0, 0], reads_input=True),)
    answer = Answer("y", 4, f"expert:{hostile}", (f"in{hostile}",), (f"out{hostile}",), routes)
    screen = io.StringIO()
    explain(Console(file=screen, width=200), Answered((name,), (answer,)), answer)
    shown = screen.getvalue()
    assert shown.replace("\n", "").isprintable()
    assert "in\\x1b]0;owned\\x07\\u202e" in shown


@pytest.mark.parametrize("modules", [True, False])
def test_modules_can_be_left_out(*, modules: bool) -> None:
    answer = Answer("y", 4, "phatgoose", ("in0",), ("out0",), (route("layers.0.q", [0], reads_input=True),))
    screen = io.StringIO()
    explain(Console(file=screen, width=120), Answered(EXPERTS, (answer,)), answer, modules=modules)
    assert ("layers.0.q" in screen.getvalue()) == modules
    assert "in0" in screen.getvalue()
