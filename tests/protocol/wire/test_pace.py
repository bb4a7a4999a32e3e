"""Who is answered at once, who waits, and who is sent away, by a clock that stands still until it is told."""

import asyncio
from itertools import pairwise

import pytest

from protocol.errors import Code, Unavailable
from protocol.wire.pace import ALONE_S, BURST, BUSY_HZ, FAULT, PATIENCE_S, SHARE_HZ, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def crowd(paced: Pace, calls: int = int(2 * BUSY_HZ)) -> None:
    """Ask as many things as there is time for, from addresses of which each asks one."""
    for number in range(calls):
        paced.wait_s(f"crowd-{number}")


def test_whoever_is_alone_never_waits() -> None:
    clock = Clock()
    paced = Pace(clock)
    for _ in range(2000):
        assert paced.wait_s("a") == 0
        paced.blame("a")


def test_nobody_waits_while_there_are_few() -> None:
    clock = Clock()
    paced = Pace(clock)
    for _ in range(500):
        clock.now += 1 / BUSY_HZ
        assert paced.wait_s("a") == 0
        clock.now += 1 / BUSY_HZ
        assert paced.wait_s("b") == 0


def test_in_a_crowd_each_has_a_share_and_what_it_saved() -> None:
    clock = Clock()
    paced = Pace(clock)
    crowd(paced)
    waits = [paced.wait_s("flood") for _ in range(200)]
    begun = [wait for wait in waits if wait <= PATIENCE_S]
    assert len(begun) == BURST + SHARE_HZ * PATIENCE_S
    assert all(later >= earlier for earlier, later in pairwise(waits)), "first come, first served"
    assert paced.wait_s("honest") == 0, "who asked for nothing until now is not kept waiting"
    # A second later it is a second's share that may begin.
    clock.now += 1
    crowd(paced)
    assert sum(paced.wait_s("flood") <= PATIENCE_S for _ in range(200)) == SHARE_HZ
    # Whatever is saved up is bounded, and so is what is owed.
    clock.now += 2 * BURST / SHARE_HZ
    crowd(paced)
    assert sum(paced.wait_s("flood") == 0 for _ in range(200)) == BURST


def test_who_is_refused_waits_for_longer_than_who_is_not() -> None:
    clock = Clock()
    paced = Pace(clock)
    crowd(paced)
    for network in ("careless", "careful"):
        for _ in range(10):
            paced.wait_s(network)
    faults = int(BURST / FAULT) + 1
    for _ in range(faults):
        paced.blame("careless")
    assert paced.wait_s("careful") == 0
    owed = faults * FAULT + 10 - BURST
    assert paced.wait_s("careless") == pytest.approx((owed + 1) / SHARE_HZ)
    clock.now += (owed + 1) / SHARE_HZ
    assert paced.wait_s("careless") == 0


def test_debts_are_paid_only_while_somebody_else_is_there() -> None:
    clock = Clock()
    paced = Pace(clock)
    paced.wait_s("somebody")
    for _ in range(50):
        paced.blame("a")
    assert paced.wait_s("a") > PATIENCE_S
    clock.now += ALONE_S + 0.1
    for _ in range(50):
        paced.blame("a")
    assert paced.wait_s("a") == 0


def test_who_asks_for_too_much_is_refused_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    paced = Pace(Clock())
    crowd(paced)
    for _ in range(int(BURST + SHARE_HZ * PATIENCE_S)):
        asyncio.run(paced.turn("flood"))
    with pytest.raises(Unavailable) as refused:
        asyncio.run(paced.turn("flood"))
    assert refused.value.code is Code.BUSY
    assert slept[0] == 0
    assert slept[-1] == PATIENCE_S


def test_only_so_many_networks_are_remembered() -> None:
    paced = Pace(Clock())
    crowd(paced, 5000)
    assert len(paced._networks) == 1 << 12
