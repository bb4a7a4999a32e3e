"""What a demo is about: a pool to found, people with private rows, and questions that nobody trained on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple


class Example(NamedTuple):
    """A request and its answer."""

    input: str
    target: str


class Question(NamedTuple):
    """A request and everything that is right about it."""

    input: str
    targets: tuple[str, ...]

    def answered_by(self, text: str) -> bool:
        """Tell whether an answer is exactly right: its first line is, since a model may go on with another request."""
        return first_line(text) in {target.strip() for target in self.targets}


def first_line(text: str) -> str:
    """Return what of an answer counts."""
    return text.strip().partition("\n")[0].strip()


@dataclass(frozen=True)
class Founding:
    """What a pool is founded on."""

    base: str
    """Base model, as the programs take it."""
    flags: tuple[object, ...]
    """Of `greylag-coordinator init`: recipe, layers, policy."""
    probe: tuple[str, ...]
    """Text by which candidates are tried, line by line."""
    statistics: tuple[str, ...] = ()
    """What every bundle tells of its data, as `init --statistics` and `train --share` call it."""
    public: tuple[str, ...] = ()
    """Text that anybody may know, line by line, for methods that hold requests against it."""
    rows: tuple[Example, ...] = ()
    """Public requests with their answers, on which the operator tries experts."""
    canaries: tuple[Example, ...] = ()
    """The same, that stay with the operator."""


@dataclass(frozen=True)
class Contributor:
    """Somebody with private rows, and questions like them that are in no file."""

    private: Sequence[Example]
    held_out: Sequence[Question]


@dataclass(frozen=True)
class Story:
    """One demo."""

    founding: Founding
    contributors: Mapping[str, Contributor]
    """In the order of expert numbers."""
    pairs: Mapping[tuple[str, str], Sequence[Question]]
    """Requests that need the experts of two contributors."""
    max_new_tokens: int
    """Longest answer, in tokens."""
    drawn: int
    """Requests of each contributor in the heat maps."""

    @property
    def digest(self) -> str:
        """Tell what is founded and trained on from anything else."""
        facts = [asdict(self.founding), {name: list(one.private) for name, one in self.contributors.items()}]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
