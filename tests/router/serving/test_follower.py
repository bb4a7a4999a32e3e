"""Following: what is said, and how often."""

import threading
import time
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from protocol.errors import Code, Unavailable
from router.follow.workspace import Mirror
from router.serving import follower as following
from router.serving.follower import Follower


def test_a_second_outage_is_said_again() -> None:
    up = SimpleNamespace(release=SimpleNamespace(spec=SimpleNamespace(number=1)))
    rounds = iter([False, False, True, False])

    def fetch(**_: object) -> Mirror:
        if next(rounds):
            return up  # type: ignore[return-value]
        raise Unavailable(Code.UNREACHABLE, "The coordinator does not answer.", "Try again.")

    model = SimpleNamespace(generation=SimpleNamespace(release=1))
    follower = Follower(model, fetch, interval_s=60)  # type: ignore[arg-type]
    with capture_logs() as logs:
        assert not any(follower.step() for _ in range(4))
    assert [entry["code"] for entry in logs] == ["UNREACHABLE"] * 2


def test_another_cause_under_the_same_code_is_said_too_and_faults_of_our_own_as_such() -> None:
    causes = iter(
        [
            Unavailable(Code.UNREACHABLE, "The name is unknown."),
            Unavailable(Code.UNREACHABLE, "The name is unknown."),
            Unavailable(Code.UNREACHABLE, "The port is closed."),
            Unavailable(Code.INTERNAL, "The coordinator has a bug."),
            RuntimeError("a bug of ours"),
        ]
    )

    def fetch(**_: object) -> Mirror:
        raise next(causes)

    follower, troubles = Follower(SimpleNamespace(), fetch, interval_s=60), []  # type: ignore[arg-type]
    with capture_logs() as logs:
        for _ in range(5):
            follower.step()
            troubles.append(follower.trouble)
    assert [(entry["log_level"], str(entry["message"]).partition(": ")[2] or entry["message"]) for entry in logs] == [
        ("warning", "The name is unknown."),
        ("warning", "The port is closed."),
        ("warning", "The coordinator has a bug."),
        ("error", "a bug of ours"),
    ]
    assert "The other side failed" in troubles[3]
    assert "This router failed" in troubles[4]
    assert "bug" not in "".join(troubles)


def test_a_round_that_does_not_end_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "STOP_S", 0.1)
    entered, go = threading.Event(), threading.Event()

    def fetch(**_: object) -> Mirror:
        entered.set()
        go.wait(20)  # a coordinator that sends a byte a second
        raise Unavailable(Code.UNREACHABLE, "The coordinator does not answer.", "Try again.")

    model = SimpleNamespace(generation=SimpleNamespace(release=1))
    follower = Follower(model, fetch, interval_s=60)  # type: ignore[arg-type]
    follower.start()
    assert entered.wait(10)
    start = time.monotonic()
    follower.stop()
    assert time.monotonic() - start < 5
    go.set()
