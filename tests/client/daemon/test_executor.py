"""What the executor runs, and what it writes down; the app bundle's own code never runs."""

import errno
import hashlib
import io
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.daemon import executor
from client.daemon import state as place_module
from client.daemon.executor import Act
from client.daemon.handlers import Work
from client.daemon.policy import DaemonPolicy
from client.daemon.state import DaemonFolder
from client.daemon.supervisor import status
from client.daemon.task_loop import check_app
from protocol.documents import Pool, timestamp
from protocol.errors import Code, Refused, Unavailable
from protocol.files.atomic import write_whole
from protocol.fleet.campaign import APP_DIGEST, Order, app_bundle
from protocol.fleet.reply import Reply
from protocol.signing import Identity
from tests import factories
from tests.client.conftest import Site

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def allowing(t5_base: Path, operator: Identity) -> Pool:
    return factories.make_pool(t5_base, operator, apps=(APP_DIGEST,))


def packed(**files: str) -> bytes:
    buffer = io.BytesIO(app_bundle())
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def test_the_one_app_bundle_passes(allowing: Pool) -> None:
    check_app(APP_DIGEST, app_bundle(), allowing)


@pytest.mark.parametrize(
    ("digest", "content"),
    [
        pytest.param("", b"", id="nothing"),
        pytest.param(None, packed(evil="import os"), id="a stranger's code"),
        pytest.param(APP_DIGEST, packed(evil="import os"), id="a changed app under an old name"),
        pytest.param(None, packed(data="private rows"), id="data packed into the app"),
        pytest.param(None, packed(**{"../../client/daemon/app.py": "import os"}), id="a path that leads out"),
        pytest.param(None, app_bundle() + b"\0", id="one byte more"),
        pytest.param(APP_DIGEST, app_bundle()[:-1] + b"\1", id="another last byte under the old name"),
        pytest.param(APP_DIGEST.upper(), app_bundle(), id="the name in upper case"),
    ],
)
def test_no_other_bytes_pass(allowing: Pool, digest: str | None, content: bytes) -> None:
    with pytest.raises(Refused) as refused:
        check_app(hashlib.sha256(content).hexdigest() if digest is None else digest, content, allowing)
    assert refused.value.code is Code.APP_UNKNOWN


def test_a_pool_that_names_no_app_runs_none(t5_pool: Pool) -> None:
    with pytest.raises(Refused) as refused:
        check_app(APP_DIGEST, app_bundle(), t5_pool)
    assert refused.value.code is Code.APP_UNKNOWN


class Hands(Work):
    """Does what it is told, and counts."""

    done = 0
    trained = 0
    fault: Exception | None = None

    def answer(self, order: Order, policy: DaemonPolicy) -> Reply:
        self.done += 1
        if self.fault is not None:
            raise self.fault
        return Reply()

    def train(self, policy: DaemonPolicy) -> Reply:
        self.trained += 1
        if self.fault is not None:
            raise self.fault
        return Reply()


@pytest.fixture
def place(site: Site) -> DaemonFolder:
    place = DaemonFolder(site.workspace)
    place.prepare()
    place.policy.write_text(f'data = "{site.data}"\n[campaigns]\ninfo = "auto"\ntrain = "ask"\nevaluate = "never"\n')
    return place


@pytest.fixture
def hands(place: DaemonFolder, site: Site) -> Hands:
    return Hands(place)


@pytest.fixture
def watching(place: DaemonFolder, hands: Hands, site: Site, monkeypatch: pytest.MonkeyPatch) -> Act:
    """Looks at the data whenever it is idle."""
    monkeypatch.setattr(executor, "LOOK_AGAIN_S", 0.0)
    place.policy.write_text(f'data = "{site.data}"\n[campaigns]\ntrain = "auto"\n[watch]\nretrain = "auto"\n')
    return Act(place, hands)


def order(kind: str, number: int = 1, **changes: object) -> Order:
    facts = {
        "pool": "1" * 64, "number": number, "kind": kind, "created": timestamp(NOW),
        "expires": timestamp(NOW + timedelta(hours=1)), "candidate": "2" * 64 if kind == "evaluate" else None,
    }  # fmt: skip
    return Order.model_validate(facts | changes)


def test_the_policy_comes_before_every_campaign(place: DaemonFolder, hands: Hands) -> None:
    act = Act(place, hands)
    assert act(order("info")).state == "done"
    assert act(order("train", 2)) == Reply("later", "CONSENT")
    assert act(order("evaluate", 3)) == Reply("failed", "CONSENT")
    assert hands.done == 1
    assert [(note["number"], note["state"]) for note in place.asked()] == [
        (1, "answered"), (2, "waits"), (3, "declined"),
    ]  # fmt: skip
    assert act(order("train", 2)).state == "later"
    place.write_note("campaign-2", place.note("campaign-2") | {"allowed": True})
    assert act(order("train", 2)).state == "done"
    text = place.log.read_text()
    assert text.count("campaign 2 (train) waits: you have to allow or decline it") == 1
    assert "campaign 2 (train): done" in text


def allow(place: DaemonFolder, number: int) -> None:
    place.write_note(f"campaign-{number}", place.note(f"campaign-{number}") | {"allowed": True})


def test_consent_is_to_an_order_and_not_to_a_number(place: DaemonFolder, hands: Hands) -> None:
    place.policy.write_text(place.policy.read_text().replace('"auto"', '"ask"').replace('"never"', '"ask"'))
    act, minute = Act(place, hands), timedelta(minutes=1)
    assert act(order("info", 7)).state == "later"
    allow(place, 7)
    assert act(order("info", 7)).state == "done"
    later = timestamp(NOW + minute)
    for other in (order("train", 7), order("info", 7, created=later), order("info", 7, pool="3" * 64)):
        assert act(other) == Reply("later", "CONSENT")
        assert place.note("campaign-7")["allowed"] is None
    assert hands.done == 1
    assert act(order("info", 7)).state == "later"  # and not to what was asked before something else


def test_consent_of_an_older_version_is_asked_for_again(place: DaemonFolder, hands: Hands) -> None:
    place.write_note("campaign-2", {"number": 2, "kind": "train", "allowed": True, "overran": True})
    assert Act(place, hands)(order("train", 2)) == Reply("later", "CONSENT")
    assert "overran" not in place.note("campaign-2")


def test_consent_holds_for_all_rounds_of_a_calibration(place: DaemonFolder, hands: Hands) -> None:
    start = {"sha256": "4" * 64, "size": 12, "campaign": 3}
    facts = {
        "strategy": "fedavg", "rounds": 2, "number": 1, "round_minutes": 5.0, "steps": 3, "learning_rate": 0.1,
        "start": None, "numbers": 3,
    }  # fmt: skip
    first, second, other = (
        order("calibrate", 3, candidate="2" * 64, calibrating=facts | changes)
        for changes in ({}, {"number": 2, "start": start}, {"steps": 4})
    )
    act = Act(place, hands)
    assert act(first).state == "later"
    allow(place, 3)
    assert [act(each).state for each in (first, second, other)] == ["done", "done", "later"]


def test_who_declines_while_it_works_is_not_overruled(
    place: DaemonFolder, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: object) -> Reply:
        place.write_note("campaign-1", place.note("campaign-1") | {"allowed": False})
        raise Unavailable(Code.UNREACHABLE, "Away.")

    monkeypatch.setattr(hands, "answer", answer)
    act = Act(place, hands)
    with pytest.raises(Unavailable):
        act(order("info"))
    assert act(order("info")) == Reply("failed", "CONSENT")


def test_a_policy_is_read_anew(place: DaemonFolder, hands: Hands) -> None:
    act = Act(place, hands)
    place.policy.write_text(place.policy.read_text().replace('info = "auto"', 'info = "never"'))
    assert act(order("info")).state == "failed"


def test_a_full_disk_is_a_reason_to_wait(place: DaemonFolder, hands: Hands) -> None:
    hands.fault = OSError(28, "No space left on device")
    with pytest.raises(Unavailable) as refused:
        Act(place, hands)(order("info"))
    assert refused.value.code is Code.STORAGE_FULL
    assert place.note("working") == {}
    assert (place.asked()[0]["state"], "disk" in place.asked()[0]["why"]) == ("waits", True)


def test_a_disk_that_is_full_for_notes_and_log_is_one_too(
    place: DaemonFolder, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = Act(place, hands)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place.log.mkdir()  # nothing can be written there, either
    monkeypatch.setattr(place_module, "write_whole", full)
    with pytest.raises(Unavailable) as refused:
        act(order("info"))
    assert (refused.value.code, hands.done) == (Code.STORAGE_FULL, 0)
    # What is done when it fills up is answered for.
    monkeypatch.setattr(place_module, "write_whole", write_whole)
    monkeypatch.setattr(hands, "answer", lambda *_: monkeypatch.setattr(place_module, "write_whole", full) or Reply())
    assert act(order("info")) == Reply()
    assert place.note("working") == {}


def test_a_file_that_changed_is_trained_on_again(
    place: DaemonFolder, hands: Hands, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "LOOK_AGAIN_S", 0.0)
    text = place.policy.read_text().replace('"ask"', '"auto"')
    place.policy.write_text(text + '[watch]\nretrain = "auto"\nchanged = 0.5\n')
    act = Act(place, hands)
    act.idle()
    assert hands.trained == 0  # nobody has asked for a first expert
    assert act(order("train")).state == "done"
    act.idle()
    assert hands.trained == 0
    lines = site.data.read_text().splitlines()
    site.data.write_text("\n".join(lines[:-10]))
    act.idle()
    assert hands.trained == 0  # a few lines less
    site.data.write_text("\n".join(line.replace("reverse", "turn") for line in lines))
    place.policy.write_text(place.policy.read_text() + "[limits]\nmin_free_memory_mb = 999999999\n")
    act.idle()
    act.idle()
    assert hands.trained == 0  # not now
    assert place.log.read_text().count("training on changed data waits") == 1
    place.policy.write_text(place.policy.read_text().replace("999999999", "0"))
    act.idle()
    act.idle()
    assert hands.trained == 1
    assert "training on changed data" in place.log.read_text()
    assert b"reverse" not in (place.folder / "trained.bin").read_bytes()


def test_training_on_changed_data_that_took_too_long_waits_for_another_change(
    place: DaemonFolder, hands: Hands, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "LOOK_AGAIN_S", 0.0)
    place.policy.write_text(f'data = "{site.data}"\n[campaigns]\ntrain = "auto"\n[watch]\nretrain = "auto"\n')
    act, text = Act(place, hands), site.data.read_text()
    act(order("train"))
    site.data.write_text(text.replace("reverse", "turn"))
    place.write_note("campaign-0", {"overran": True, "state": "stopped"})
    assert [note["number"] for note in status(place)["campaigns"]] == [1]
    act.idle()
    act.idle()
    assert hands.trained == 0
    assert place.log.read_text().count("is not tried again until they or max_minutes change") == 1
    site.data.write_text(text.replace("reverse", "mirror"))
    act.idle()
    assert hands.trained == 1


def test_training_on_changed_data_that_took_too_long_is_tried_with_more_time(
    place: DaemonFolder, hands: Hands, site: Site, watching: Act
) -> None:
    watching(order("train"))
    site.data.write_text(site.data.read_text().replace("reverse", "turn"))
    place.write_note("campaign-0", {"overran": True, "state": "stopped"})
    watching.idle()
    assert hands.trained == 0
    place.policy.write_text(place.policy.read_text() + "[limits]\nmax_minutes = 900\n")
    watching.idle()
    assert hands.trained == 1


def test_a_campaign_whose_training_failed_counts_as_none(
    place: DaemonFolder, hands: Hands, site: Site, watching: Act
) -> None:
    hands.fault = Unavailable(Code.UNREACHABLE, "Away.")
    with pytest.raises(Unavailable):
        watching(order("train"))
    site.data.write_text(site.data.read_text().replace("reverse", "turn"))
    watching.idle()
    assert hands.trained == 0
    assert not (place.folder / "trained.bin").exists()


def test_an_outage_over_a_training_on_changed_data_is_waited_out(
    place: DaemonFolder, hands: Hands, site: Site, watching: Act
) -> None:
    watching(order("train"))
    site.data.write_text(site.data.read_text().replace("reverse", "turn"))
    for fault in (Unavailable(Code.UNREACHABLE, "Away."), RuntimeError("broken")):
        hands.fault = fault
        watching.idle()
        assert str(fault) in place.log.read_text()
    hands.fault = None
    Act(place, hands).idle()  # also by a process that was started anew: nothing was remembered before it was done
    assert hands.trained == 3
    watching.idle()
    assert hands.trained == 3


def test_a_training_that_keeps_failing_is_tried_less_and_less_often(
    hands: Hands, site: Site, watching: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching(order("train"))
    site.data.write_text(site.data.read_text().replace("reverse", "turn"))
    hands.fault, now = Unavailable(Code.UNREACHABLE, "Away."), 1e9
    monkeypatch.setattr(executor, "LOOK_AGAIN_S", 60.0)
    monkeypatch.setattr(watching, "_pause_s", 60.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tried = []
    for _ in range(60 * 24):
        watching.idle()
        tried.append(hands.trained)
        now += 60
    assert 25 < tried[-1] < 35  # a day: each hour, and a few times at first
    assert tried[10] == 3


@pytest.mark.parametrize("unasked", [False, True])
def test_rows_that_come_while_it_trains_are_new_afterwards(
    hands: Hands, site: Site, watching: Act, monkeypatch: pytest.MonkeyPatch, *, unasked: bool
) -> None:
    lines = site.data.read_text().splitlines(keepends=True)

    def more_rows(*_: object) -> Reply:
        site.data.write_text("".join(lines + [line.replace("reverse", "turn") for line in lines]))
        return Reply()

    if unasked:
        watching(order("train"))
        site.data.write_text("".join(lines[: len(lines) // 2]))
    with monkeypatch.context() as patch:
        patch.setattr(hands, "train" if unasked else "answer", more_rows)
        if unasked:
            watching.idle()
        else:
            watching(order("train"))
    watching.idle()
    assert hands.trained == 1
    watching.idle()
    assert hands.trained == 1


def test_a_failure_to_train_again_is_written_down(
    place: DaemonFolder, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "LOOK_AGAIN_S", 0.0)
    place.policy.unlink()
    Act(place, hands).idle()
    assert "cannot be read" in place.log.read_text()
