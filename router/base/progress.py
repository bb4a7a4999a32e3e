"""Bars on a terminal for what takes long. A library is silent: they are drawn where a door asks for them."""

from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

PATIENCE_S = 2.0
"""After how long somebody who waits is told what for, in seconds."""
_shown: ContextVar[bool] = ContextVar("shown", default=False)

Item = TypeVar("Item")


def show_bars() -> None:
    """Draw bars on stderr from now on, wherever that is a terminal."""
    _shown.set(True)


def bar(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Go through items, and show how far it is once that takes long.

    Args:
        items: To go through.
        what: Is done with them, for people.
        total: Their number, where they do not tell it.
    """
    from tqdm import tqdm  # noqa: PLC0415 - doors import this before they know their verb

    yield from tqdm(items, what, total, leave=False, delay=PATIENCE_S, disable=_hidden())


def byte_bar(what: str) -> "tqdm[NoReturn]":
    """Make a bar over bytes, for a `with`: whoever moves it sets its `total` as soon as it is known."""
    from tqdm import tqdm  # noqa: PLC0415 - as above

    return tqdm(desc=what, total=0, unit="B", unit_scale=True, leave=False, delay=PATIENCE_S, disable=_hidden())


def _hidden() -> bool | None:
    return None if _shown.get() else True  # None: on a terminal alone
