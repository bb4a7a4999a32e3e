"""One case, and where it comes from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from coordinator.conformance.answer import Expected
from coordinator.conformance.stage import Stage


class Need(StrEnum):
    """What some deployments have."""

    WORKER = "worker"
    """Somebody judges bundles."""
    FLEET = "fleet"
    """Daemons are taken."""
    NO_FLEET = "no fleet"
    STATISTICS = "statistics"
    """The pool wants to be told something of the data."""


Play = Callable[[Stage], object]


@dataclass(frozen=True)
class Case:
    """What is sent, and how it must be answered."""

    name: str
    """Its subject and what is sent, as in `envelope/begin/payload-left-out`."""
    play: Play
    """Sends it; ends in `AnsweredError` where it is refused, in `UnmetError` where a story took a wrong turn."""
    expects: Expected = None
    needs: tuple[Need, ...] = ()
    """What a deployment must have that not all have."""

    @property
    def subject(self) -> str:
        """What it belongs to."""
        return self.name.partition("/")[0]


Row = tuple[str, Play, Expected]


def named(subject: str, rows: Iterable[Row], *needs: Need) -> list[Case]:
    """Make cases of one subject."""
    return [Case(f"{subject}/{name}", play, expects, needs) for name, play, expects in rows]
