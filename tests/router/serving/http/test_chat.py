"""A talk in a terminal, with a real router behind a real socket."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from protocol.errors import Code, Refused, Unavailable
from router.cli.chat import chat
from router.cli.main import app
from router.query.chat_client import ChatClient, Piece, Told, Wish
from router.serving.engine import Engine
from router.serving.users.user_file import add_user, revoke_user
from tests.router.serving.http.conftest import opened

Typing = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keeps the router's own log, which a router of another process would write elsewhere, off the screen."""
    with capture_logs():
        yield


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str) -> Typing:
    """Types lines at a terminal; gives what stands on stdout and stderr in the end."""

    def typed(*lines: str, explain: bool = False) -> tuple[str, str]:
        left = iter(lines)

        def one(prompt: str) -> str:
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", one)
        chat(url=url, max_new_tokens=6, explain=explain)
        return capsys.readouterr()

    return typed


def ask(url: str, text: str, wish: Wish, key: str = "") -> tuple[str, list[Piece], Told]:
    with closing(ChatClient(url, key)) as client:
        *pieces, told = client.ask([{"role": "user", "content": text}], wish, client.facts())
    assert isinstance(told, Told)
    assert all(isinstance(piece, Piece) for piece in pieces)
    return "".join(piece.text for piece in pieces), pieces, told  # type: ignore[union-attr, return-value]


def test_an_answer_comes_in_pieces_with_who_gave_it(url: str) -> None:
    text, pieces, told = ask(url, "a b", Wish(max_tokens=6, explain=True))
    assert text.strip()
    assert [piece.token for piece in pieces] == sorted({piece.token for piece in pieces})
    assert (told.release, told.method, told.reason) == (8, "phatgoose", "length")
    assert sum(share for _, share in told.experts) == pytest.approx(1, abs=1e-4)
    assert len(told.tokens) == 5, "nobody read the last one"
    alone = ask(url, "a b", Wish(expert="ada/say", release=7, max_tokens=6))[2]
    assert (alone.release, alone.experts, alone.tokens) == (7, [("ada/say", 1.0)], [])


def test_a_person_changes_who_answers_in_the_middle_of_a_talk(typing: Typing) -> None:
    out, err = typing("a b", "/expert ada/copy", "/explain", "c", "/release 99", "d", "/release", "/new", "e", "/help")
    assert "notes: release 8, 3 experts." in err
    assert "Asking notes/expert:ada/copy, explained." in err
    assert "copy 100%" in err
    assert "error: Release 99" in err
    assert "/quit" in err
    assert len([line for line in out.splitlines() if line.strip()]) == 3, "the talk went on after the refusal"


def test_whoever_quits_is_asked_nothing_more(typing: Typing) -> None:
    out, _ = typing("/experts", "/quit", "a b")
    assert out.splitlines() == ["ada/copy", "ada/say", "ada/rotate", out.splitlines()[-1]]
    assert out.splitlines()[-1].startswith("methods: phatgoose")


def test_a_pipe_is_one_talk_a_line_at_a_time(url: str) -> None:
    done = CliRunner().invoke(app, ["chat", "--url", url, "--max-new-tokens", "6", "--json"], input="a b\n\nc\n")
    assert done.exit_code == 0
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["release"], first["method"]) == (8, "phatgoose")
    alone = CliRunner().invoke(app, ["chat", "--url", url, "--max-new-tokens", "6", "--json"], input="c\n")
    assert json.loads(alone.stdout)["text"] != second["text"], "what was said before counts"


def test_a_key_is_needed_and_then_worth_nothing(engine: Engine, tmp_path: Path) -> None:
    key = add_user(tmp_path, "eve").key
    with opened(engine, tmp_path) as url:
        for wrong in ("", "x"):
            with pytest.raises(Refused) as refused:
                ask(url, "a", Wish(max_tokens=1), wrong)
            assert refused.value.code is Code.USER_KEY
        assert ask(url, "a", Wish(max_tokens=1), key)[2].release == 8
        revoke_user(tmp_path, "eve")
        with pytest.raises(Refused) as refused:
            ask(url, "a", Wish(max_tokens=1), key)
        assert refused.value.code is Code.USER_KEY


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://x", "http://", "http://a b"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(Refused) as refused:
        ChatClient(url)
    assert refused.value.code is Code.REQUEST_INVALID


def test_nobody_there_is_told() -> None:
    with pytest.raises(Unavailable) as missing:
        ChatClient("http://127.0.0.1:1").facts()
    assert missing.value.code is Code.UNREACHABLE
