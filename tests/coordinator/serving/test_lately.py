"""What is asked many times a second is looked into once."""

import time

import pytest

from coordinator.serving import server
from protocol.errors import Code, Refused


def test_a_good_end_holds_for_a_moment_and_a_bad_one_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, lost = [100.0], list[float](), list[Refused]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def check() -> None:
        asked.append(now[0])
        if lost:
            raise lost[0]

    look = server._lately(check)
    for _ in range(3):
        look()
    assert asked == [100.0]
    now[0] += server._LATELY_S + 0.1
    lost.append(Refused(Code.LOG_ROLLBACK, "It lacks entries.", "Restore it."))
    for _ in range(2):
        with pytest.raises(Refused, match="lacks entries"):
            look()
    lost.clear()
    look()
    look()
    assert len(asked) == 4
