"""What a node may answer to a campaign: named numbers and words of known form, and nothing else.

The same schema holds at both ends: what a node's daemon lets out, and what a coordinator takes in.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from protocol.errors import Code, Refused
from protocol.release import MAX_CALIBRATION_BYTES
from protocol.statement import SHA256

ORDER, ANSWER, METRICS, ARRAYS = "order", "answer", "metrics", "arrays"
"""Names of the records in messages and replies."""
UPDATE = "update"
"""Name of the one array that a reply may hold."""
_WITH_UPDATE = frozenset({"calibrate"})
NUMBER_BYTES = 4
_MOST = 1e12
"""Largest number either way: no loss, no time and no memory comes near."""
_COMMON = {"state": r"done|later|failed", "code": r"[A-Z_]{0,32}", "error": r"[A-Za-z_]{0,64}"}
_WORDS: Mapping[str, Mapping[str, str]] = {
    "info": {"version": r"[0-9a-z.+]{1,32}", "device": r"cpu|cuda", "rows": r"[a-z0-9, ]{1,40}"},
    "train": {"bundle": SHA256},
    "evaluate": {"rows": r"[a-z0-9, ]{1,40}"},
    "calibrate": {"round": r"[0-9]{1,4}"},
}
_METRICS: Mapping[str, frozenset[str]] = {
    "info": frozenset({"memory_gb"}),
    "train": frozenset({"seconds", "loss"}),
    "evaluate": frozenset({"seconds", "loss_base", "loss_release", "loss_candidate", "loss_own"}),
    "calibrate": frozenset({"seconds"}),
}


@dataclass(frozen=True)
class Reply:
    """One node's answer."""

    state: str = "done"
    """done, failed, or later: ask again."""
    code: str = ""
    """Why not, by the name of one of our codes."""
    error: str = ""
    """Type of an error that nobody foresaw; never its text, which may quote a row."""
    words: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    update: bytes = b""
    """Numbers of a calibration, float32 in little-endian order; their places are the release's."""

    @property
    def text(self) -> dict[str, str]:
        """Everything that is not a number, by name."""
        return {"state": self.state, "code": self.code, "error": self.error, **self.words}


def read_reply(kind: str, text: Mapping[str, object], metrics: Mapping[str, object], update: bytes = b"") -> Reply:
    """Take an answer if the schema of its kind allows every single entry.

    An update may hold any finite numbers, as many as its bound allows; who reads it knows how many there must be.

    Raises:
        Refused: `EGRESS`, naming the place but never the value.
    """
    forms = {**_COMMON, **_WORDS.get(kind, {})}
    for name, value in text.items():
        if name not in forms or type(value) is not str or not re.fullmatch(forms[name], value):
            raise _not_allowed(kind, "word")
    numbers: dict[str, float] = {}
    for name, number in metrics.items():
        if (
            name not in _METRICS.get(kind, frozenset())
            or not isinstance(number, int | float)
            or isinstance(number, bool)
            or not abs(number) <= _MOST  # also where it is no number, or an integer that no float holds
        ):
            raise _not_allowed(kind, "number")
        numbers[name] = float(number)
    if update and (
        kind not in _WITH_UPDATE
        or len(update) > MAX_CALIBRATION_BYTES
        or len(update) % NUMBER_BYTES
        or not all(map(math.isfinite, memoryview(update).cast("B").cast("f")))
    ):
        raise _not_allowed(kind, "array")
    words = {name: str(value) for name, value in text.items()}
    own = {name: words.pop(name, "") for name in _COMMON}
    return Reply(own["state"] or "failed", own["code"], own["error"], words, numbers, update)


def _not_allowed(kind: str, what: str) -> Refused:
    return Refused(
        Code.EGRESS, f"A reply to {kind[:20]!r} holds a {what} that its schema does not name.", "Nothing was sent."
    )
