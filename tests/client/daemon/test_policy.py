from datetime import datetime
from pathlib import Path

import pytest

from client.daemon.policy import DaemonPolicy, judge, read_policy, write_policy
from protocol.errors import Code, Refused
from protocol.fleet.campaign import KINDS, Kind
from protocol.spec import Promise

NOON = datetime(2026, 11, 22, 12)  # noqa: DTZ001 - local time, as the policy means it


def policy(**sections: object) -> DaemonPolicy:
    return DaemonPolicy.model_validate({"data": "rows.jsonl", **sections})


def decide(
    given: DaemonPolicy, kind: Kind = "train", *, allowed: bool | None = None, free: int = 4096, now: datetime = NOON,
    overran: bool = False,
) -> str:  # fmt: skip
    verdict = judge(given, kind, allowed=allowed, now=now, free_memory_mb=free, overran=overran)
    assert bool(verdict.why) == (verdict.state != "done")
    return verdict.state


def test_a_first_policy_tells_what_it_has_and_asks_for_the_rest(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    write_policy(tmp_path / "daemon.toml", tmp_path / "rows.jsonl")
    found = read_policy(tmp_path / "daemon.toml")
    assert found.data == tmp_path / "rows.jsonl"
    assert [decide(found, kind) for kind in KINDS] == ["done", "later", "later", "later"]


@pytest.mark.parametrize(
    ("consent", "allowed", "expected"),
    [
        ("auto", None, "done"), ("auto", False, "failed"), ("ask", None, "later"), ("ask", True, "done"),
        ("ask", False, "failed"), ("never", None, "failed"), ("never", True, "failed"),
    ],
)  # fmt: skip
def test_consent(consent: str, *, allowed: bool | None, expected: str) -> None:
    assert decide(policy(campaigns={"train": consent}), allowed=allowed) == expected


@pytest.mark.parametrize(
    ("hours", "hour", "expected"),
    [
        ([], 12, "done"), (["09:00-17:00"], 12, "done"), (["09:00-17:00"], 17, "later"), (["09:00-17:00"], 9, "done"),
        (["22:00-06:00"], 23, "done"), (["22:00-06:00"], 5, "done"), (["22:00-06:00"], 6, "later"),
        (["22:00-06:00", "12:00-13:00"], 12, "done"),
    ],
)  # fmt: skip
def test_hours(hours: list[str], hour: int, expected: str) -> None:
    given = policy(campaigns={"train": "auto"}, limits={"hours": hours})
    assert decide(given, now=NOON.replace(hour=hour)) == expected


def test_memory_and_time() -> None:
    given = policy(campaigns={"train": "auto"}, limits={"min_free_memory_mb": 1000})
    assert decide(given, free=999) == "later"
    assert decide(given, free=1000) == "done"
    assert decide(given, overran=True) == "failed"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "data"), ('data = "x"\nmore = 1', "more"), ('data = "x"\n[campaigns]\ntrain = "yes"', "campaigns.train"),
        ('data = "x"\n[privacy]\nepsilon = 8\ndelta = 1e-5', "privacy.max_epsilon"),
        ('data = "x"\n[privacy]\nepsilon = 0\ndelta = 1e-5\nmax_epsilon = 8', "privacy.epsilon"),
        ('data = "x"\n[limits]\nhours = ["9-17"]', "limits.hours.0"), ("data =", "TOML"), (None, "cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_policy_is_named(tmp_path: Path, text: str | None, name: str) -> None:
    path = tmp_path / "daemon.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Refused, match=name) as refused:
        read_policy(path)
    assert refused.value.code is Code.SETTINGS_INVALID


def test_a_policy_may_promise_privacy(tmp_path: Path) -> None:
    path = tmp_path / "daemon.toml"
    path.write_text('data = "x"\n[privacy]\nepsilon = 8\ndelta = 1e-5\nmax_epsilon = 24\n')
    found = read_policy(path).privacy
    assert found is not None
    assert (found.promise, found.max_epsilon) == (Promise(epsilon=8, delta=1e-5, clip=1.0), 24)
