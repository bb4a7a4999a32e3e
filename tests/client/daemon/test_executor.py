"""What the executor runs, and what it writes down; the app bundle's own code never runs."""

import errno
import hashlib
import io
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
        return Reply()


@pytest.fixture
def place(site: Site) -> DaemonFolder:
    place = DaemonFolder(site.workspace)
    place.prepare()
    place.policy.write_text(f'data = "{site.data}"\n[campaigns]\ninfo = "auto"\ntrain = "ask"\nevaluate = "never"\n')
    return place


@pytest.fixture
def hands(place: DaemonFolder, site: Site) -> Hands:
    return Hands(place, site.pool)


def order(kind: str, number: int = 1) -> Order:
    now = datetime.now(UTC)
    return Order.model_validate(
        {
            "pool": "1" * 64, "number": number, "kind": kind, "created": timestamp(now),
            "expires": timestamp(now + timedelta(hours=1)), "candidate": "2" * 64 if kind == "evaluate" else None,
        }
    )  # fmt: skip


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
    assert "is not tried again until they change again" in place.log.read_text()
    site.data.write_text(text)
    act.idle()
    assert hands.trained == 1


def test_a_failure_to_train_again_is_written_down(
    place: DaemonFolder, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "LOOK_AGAIN_S", 0.0)
    place.policy.unlink()
    Act(place, hands).idle()
    assert "cannot be read" in place.log.read_text()
