"""greylag-router chat: a talk with a router that runs, in a terminal."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.printable import printable
from protocol.programs import print_json, put, say
from router.cli.options import Ca, Json, NewTokens
from router.query.limits import DEFAULT_NEW_TOKENS

if TYPE_CHECKING:
    from router.query.chat_client import ChatClient, Told, Wish

_HELP = """/method NAME   how tokens find their experts; without a name, the release's way
/expert NAME   one expert alone, as contributor/name; without a name, all
/release N     an earlier release; without a number, the newest
/explain       colour answers by expert, or no more
/experts       who may answer, and by which methods
/new           forget what was said
/quit          end; so does Ctrl-D. Ctrl-C ends an answer."""


def chat(
    *,
    url: Annotated[str, typer.Option(help="Where `greylag-router serve --http` answers.")] = "http://127.0.0.1:8080",
    key: Annotated[
        str, typer.Option(envvar="GREYLAG_USER_KEY", show_default=False, help="Your key, if the router wants one.")
    ] = "",
    ca: Ca = None,
    method: Annotated[str, typer.Option(help="Routing method; default: the release's.")] = "",
    expert: Annotated[str, typer.Option(help="The only expert to answer, as contributor/name; default: all.")] = "",
    release: Annotated[int | None, typer.Option(min=1, help="An earlier release; default: the newest.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="How freely words are chosen; 0 takes the likeliest each time.")
    ] = 0.0,
    max_new_tokens: NewTokens = DEFAULT_NEW_TOKENS,
    explain: Annotated[bool, typer.Option("--explain", help="Colour each token by who answered most of it.")] = False,
    json_: Json = False,
) -> None:
    """Talk with a router that runs, word by word; what comes by a pipe is asked a line at a time, as one talk.

    Example: greylag-router chat --explain
    """
    from router.query.chat_client import ChatClient, Wish

    wish = Wish(method, expert, release, max_new_tokens, temperature, explain or json_)
    client = ChatClient(url, key, ca)
    try:
        talk = _Talk(client, wish, _shown_json if json_ else _Screen())
        if not sys.stdin.isatty():
            for line in sys.stdin:
                if text := line.strip():
                    talk.ask(text)
        else:
            talk.greet()
            for text in _typed():
                if not talk.take(text):
                    break
    finally:
        client.close()


def _typed() -> Iterator[str]:
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited and brought back
    while True:
        try:
            text = input("you> ").strip()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")
            continue
        if text:
            yield text


class _Talk:
    """One talk, and how its answers are made.

    Args:
        client: Asks.
        wish: How answers are made at first.
        show: Shows an answer as it comes, given its parts; returns its text and what was told of it.
    """

    def __init__(
        self, client: "ChatClient", wish: "Wish", show: Callable[[Iterator[Any]], tuple[str, "Told | None"]]
    ) -> None:
        self._client, self._wish, self._show = client, wish, show
        self._facts, self._turns = client.facts(), list[Any]()

    def greet(self) -> None:
        """Say with whom one talks."""
        facts = self._facts
        what = f"release {facts['release']}, {len(facts['experts'])} experts" if facts["release"] else "no release yet"
        say(f"{printable(facts['pool'])}: {what}. /help tells what else can be typed.")
        if not facts["chat"]:
            say("The base has no chat template: every question is asked for itself.")

    def take(self, text: str) -> bool:
        """Do what a person typed; returns whether the talk goes on."""
        from protocol.errors import GreylagError

        try:
            if not text.startswith("/"):
                self.ask(text)
            elif text.split(maxsplit=1)[0] in ("/quit", "/exit"):
                return False
            else:
                self._obey(*text[1:].split(maxsplit=1))
        except GreylagError as error:
            say(f"error: {error.message} {error.hint}".strip())
        return True

    def ask(self, text: str) -> None:
        """Ask, show the answer, and remember both."""
        turns = [*self._turns, {"role": "user", "content": text}]
        answer, told = self._show(self._client.ask(turns, self._wish, self._facts))
        if told is not None:
            self._turns = [*turns, {"role": "assistant", "content": answer or " "}]

    def _obey(self, verb: str = "", value: str = "") -> None:
        match verb:
            case "method":
                self._wish = replace(self._wish, method=value.strip(), expert="")
            case "expert":
                self._wish = replace(self._wish, expert=value.strip(), method="")
            case "release" if not value or value.isdecimal():
                self._wish = replace(self._wish, release=int(value) if value else None)
            case "explain":
                self._wish = replace(self._wish, explain=not self._wish.explain)
            case "experts":
                self._facts = self._client.facts()
                put(
                    "\n".join(
                        map(printable, [*self._facts["experts"], f"methods: {', '.join(self._facts['methods'])}"])
                    )
                )
                return
            case "new":
                self._turns = []
            case _:
                say(_HELP)
                return
        wish = self._wish
        say(f"Asking {printable(wish.model(self._facts['pool']))}{', explained' if wish.explain else ''}.")


def _shown_json(parts: Iterator[Any]) -> tuple[str, "Told | None"]:
    *pieces, told = parts
    text = "".join(piece.text for piece in pieces)
    experts = [{"name": name, "share": share} for name, share in told.experts]
    print_json(
        {"text": text, "release": told.release, "method": told.method, "reason": told.reason, "experts": experts}
    )
    return text, told


class _Screen:
    """Shows answers: as they come, then, where it was asked for, coloured by expert, with shares."""

    def __call__(self, parts: Iterator[Any]) -> tuple[str, "Told | None"]:
        from router.query.chat_client import Told
        from router.query.terminal import explain_talk

        pieces, told = list[Any](), None
        shown = printable if sys.stdout.isatty() else str
        try:
            for part in parts:
                if isinstance(part, Told):
                    told = part
                else:
                    pieces.append(part)
                    sys.stdout.write(shown(part.text))
                    sys.stdout.flush()
        except KeyboardInterrupt:
            say(" …")  # and what was said is forgotten
        finally:
            sys.stdout.write("\n")
            sys.stdout.flush()
        if told is not None and sys.stdout.isatty():
            explain_talk([(piece.text, piece.token) for piece in pieces], told.experts, told.tokens)
        return "".join(piece.text for piece in pieces), told
