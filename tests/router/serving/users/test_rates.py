"""What users may ask in a span of time, each for himself."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from limits import storage, strategies

from protocol.errors import Code, Refused
from router.serving.users import rates as counting
from router.serving.users.rates import LimitReached, Rates
from router.serving.users.user_file import User, add_user


@pytest.fixture
def ada(tmp_path: Path) -> User:
    return add_user(tmp_path, "ada", requests="2/minute;3/hour", tokens="100/hour").user


def test_limits_are_counted_each_for_its_user_and_come_back(
    ada: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000.0
    clock = SimpleNamespace(time=lambda: now)
    for module in (counting, storage.memory, strategies):
        monkeypatch.setattr(module, "time", clock)
    rates, bob = Rates(), add_user(tmp_path, "bob").user
    rates.charge(ada, answers=2, tokens=10)
    with pytest.raises(LimitReached, match=r"2 per 1 minute") as reached:
        rates.charge(ada, answers=1, tokens=10)
    assert reached.value.error.code is Code.LIMIT_REACHED
    assert 1 <= reached.value.retry_s <= 120
    rates.charge(bob, answers=50, tokens=1 << 20)  # without limits
    now += 121
    rates.charge(ada, answers=1, tokens=10)
    with pytest.raises(LimitReached, match=r"3 per 1 hour"):  # and the minute's was not counted for it
        rates.charge(ada, answers=1, tokens=10)


def test_a_refused_request_costs_nothing_and_one_beyond_a_limit_never_passes(ada: User) -> None:
    rates = Rates()
    with pytest.raises(Refused, match="may come to 101 tokens") as refused:
        rates.charge(ada, answers=1, tokens=101)
    assert refused.value.code is Code.REQUEST_INVALID
    rates.charge(ada, answers=1, tokens=60)
    for _ in range(3):
        with pytest.raises(LimitReached, match="tokens"):
            rates.charge(ada, answers=1, tokens=41)
    rates.charge(ada, answers=1, tokens=40)
