"""What the three programs share: one JSON document on stdout, talk on stderr, errors as sentences."""

import importlib.util
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, Any

from protocol.errors import Code, GreylagError, Refused, from_os_error
from protocol.printable import printable

if TYPE_CHECKING:
    import subprocess

STOP_S = 15.0
"""How long a child may take to end before it is killed, in seconds."""
SCHEMA = 1
"""Version of the JSON documents."""


def run(program: Callable[[], Any]) -> None:
    """Run a program; an error of the table becomes a sentence, a hint and an exit status."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else the library narrates handshakes on stderr
    try:
        try:
            program()
        except OSError as error:
            raise from_os_error(error) from error
    except GreylagError as error:
        say(f"error: {error.message} [{error.code.name}]")
        if error.hint:
            say(f"hint: {error.hint}")
        raise SystemExit(error.code.fate.exit) from None


def end_child(process: "subprocess.Popen[Any]", *, at_once: bool = False) -> None:
    """End a process that was started with pipes, by force if it does not go or `at_once`, and put its pipes away."""
    (process.kill if at_once else process.terminate)()
    try:
        process.wait(STOP_S)
    except TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def with_flags_of(*others: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb the flags of other functions, before its own; what it does not name arrives in its `**flags`."""

    def decorate(verb: Callable[..., Any]) -> Callable[..., Any]:
        flags = [
            flag
            for each in (*others, verb)
            for flag in inspect.signature(each).parameters.values()
            if flag.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        verb.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined] # read by inspect
        verb.__annotations__ = {flag.name: flag.annotation for flag in flags} | {"return": None}
        return verb

    return decorate


def needs(package: str, extra: str, what: str) -> None:
    """Refuse what a package of an extra has to be installed for (`SETTINGS_INVALID`)."""
    if importlib.util.find_spec(package) is None:
        what = f"{what} needs {package}, which is not installed."
        raise Refused(Code.SETTINGS_INVALID, what, f"Install it with: pip install 'greylag[{extra}]'")


def configure_logs(*, as_json: bool = False, level: int = logging.INFO) -> None:
    """Send log lines of a level or above to stderr, for people or for machines."""
    import structlog  # noqa: PLC0415 - `--help` needs none

    renderer: Any = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,  # plain: the pretty ones print variables, and with them questions
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def say(sentence: str) -> None:
    """Talk to the person at the terminal, on stderr."""
    sys.stderr.write(printable(sentence) + "\n")
    sys.stderr.flush()


def put(text: str) -> None:
    """Print what a verb was asked for, on stdout."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def print_json(document: dict[str, Any]) -> None:
    """Print the one document of a verb, on stdout."""
    sys.stdout.write(json.dumps({"schema": SCHEMA, **document}) + "\n")
    sys.stdout.flush()
