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
