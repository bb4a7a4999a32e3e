import math
from array import array

import pytest

from protocol.errors import Code, Refused
from protocol.fleet.reply import Reply, read_reply
from protocol.release import MAX_CALIBRATION_BYTES


def test_an_answer_passes_as_it_is() -> None:
    reply = Reply(words={"bundle": "a" * 64}, metrics={"loss": 0.5, "seconds": 3})
    assert read_reply("train", reply.text, reply.metrics) == reply


def test_an_update_passes_as_it_is() -> None:
    reply = Reply(words={"round": "2"}, metrics={"seconds": 3}, update=array("f", [0.5, -1.0]).tobytes())
    assert read_reply("calibrate", reply.text, reply.metrics, reply.update) == reply


@pytest.mark.parametrize(
    ("kind", "update"),
    [
        ("train", b"\0" * 8),
        ("", b"\0" * 8),
        ("calibrate", b"\0" * 9),
        ("calibrate", b"\0" * (MAX_CALIBRATION_BYTES + 4)),
        ("calibrate", array("f", [0.5, math.nan]).tobytes()),
        ("calibrate", array("f", [-math.inf]).tobytes()),
    ],
)
def test_an_update_that_the_schema_does_not_name_stays(kind: str, update: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_reply(kind, {"state": "done"}, {}, update)
    assert refused.value.code is Code.EGRESS


def test_what_is_missing_counts_as_a_failure() -> None:
    assert read_reply("info", {}, {}).state == "failed"


@pytest.mark.parametrize(
    ("kind", "text", "metrics"),
    [
        ("train", {"row": "PRIVATE"}, {}),
        ("train", {"bundle": "PRIVATE"}, {}),
        ("train", {"bundle": "a" * 64 + "\n"}, {}),
        ("train", {"bundle": 7}, {}),
        ("train", {"code": "private row"}, {}),
        ("train", {"error": "KeyError: private"}, {}),
        ("train", {"state": "leaked"}, {}),
        ("train", {}, {"rows": 4711}),
        ("train", {}, {"loss": [0.1, 0.2]}),
        ("train", {}, {"loss": "0.1"}),
        ("train", {}, {"loss": True}),
        ("train", {}, {"loss": math.nan}),
        ("train", {}, {"loss": math.inf}),
        ("train", {}, {"loss": -math.inf}),
        ("train", {}, {"loss": 10**400}),
        ("train", {}, {"loss": -(1 << 63)}),
        ("train", {}, {"loss": 1e300}),
        ("train", {}, {"loss\n": 0.1}),
        ("train", {"bundle": "a" * (10 << 20)}, {}),
        ("info", {"bundle": "a" * 64}, {}),
        ("info", {}, {"loss_candidate": 0.1}),
        ("leak", {"bundle": "a" * 64}, {}),
        ("", {"bundle": "a" * 64}, {}),
    ],
)
def test_what_the_schema_does_not_name_stays(kind: str, text: dict[str, object], metrics: dict[str, object]) -> None:
    with pytest.raises(Refused) as refused:
        read_reply(kind, text, metrics)
    assert refused.value.code is Code.EGRESS
    assert "PRIVATE" not in str(refused.value)
