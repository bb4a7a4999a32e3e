"""How a coordinator answers what it does not take, and whether that is the answer it owes."""

from dataclasses import dataclass

from protocol.errors import Code
from protocol.printable import printable

_MOST_LETTERS = 1000
Expected = Code | str | None
"""A code of the table; the name of a gRPC status where gRPC itself refuses; None for what must go well."""


@dataclass(frozen=True)
class WireAnswer:
    """A refusal as it arrived."""

    code: str
    """Of the table; empty where gRPC itself refused."""
    message: str
    hint: str
    status: str = ""
    """gRPC's; empty for a verdict, which comes as a reply."""

    def __str__(self) -> str:
        return f"{self.status or 'verdict'} {self.code or '-'}: {printable(self.message)}"


class AnsweredError(Exception):
    """A call was refused, or a bundle was."""

    def __init__(self, answer: WireAnswer) -> None:
        super().__init__(str(answer))
        self.answer = answer


class UnmetError(Exception):
    """The other side did something else than it must; says what."""


def find_fault(expected: Expected, answer: WireAnswer | None) -> str:
    """Hold an answer against the one that is owed, and say in what it differs; nothing if it does not.

    Args:
        expected: What is owed.
        answer: The refusal; None if all went well.
    """
    if answer is None:
        return "" if expected is None else f"It was taken; expected {_name(expected)}."
    if not isinstance(expected, Code):
        right = expected is not None and not answer.code and answer.status == expected
        return "" if right else f"Expected {_name(expected)}; got {answer}."
    if answer.code != expected.name or answer.status not in ("", expected.fate.grpc):
        return f"Expected {expected.fate.grpc} {expected.name}; got {answer}."
    for what, text in (("sentence", answer.message), ("hint", answer.hint)):
        if not text.strip():
            return f"{expected.name} comes without a {what}."
        if len(text) > _MOST_LETTERS or "\n" in text or "\t" in text or printable(text) != text:
            return f"{expected.name} comes with a {what} that echoes what no screen should show."
    return ""


def _name(expected: Expected) -> str:
    return "success" if expected is None else expected.name if isinstance(expected, Code) else expected
