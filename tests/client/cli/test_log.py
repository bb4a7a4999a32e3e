"""What was submitted is in the pool's log, and stays there: otherwise `verify` says so."""

import json
from collections.abc import Callable

import pytest

from client.submission import outbox
from protocol.errors import Code, Unavailable
from protocol.log.note import NoteKey, SignatureType, cosign
from protocol.signing import Identity
from protocol.v1.intake_pb2 import StatusReply
from tests.client.conftest import NOW, Cli, Site
from tests.client.fake_coordinator import FakeCoordinator


def verified(cli: Cli, site: Site) -> dict[str, object]:
    status, out, _ = cli("verify", "--json", "-w", site.workspace.root)
    document: dict[str, object] = json.loads(out)
    return {"status": status, "faults": [row["fault"] for row in document["bundles"]], "size": document["size"]}  # type: ignore[attr-defined]


def test_a_submitted_bundle_is_proved_to_be_logged(cli: Cli, packed: Site, fake: FakeCoordinator) -> None:
    root = packed.workspace.root
    assert cli("submit", "-w", root)[0] == 0
    (record,) = outbox.load(packed.workspace.outbox)
    assert record.logged
    leaf, head = record.logged.verify(packed.pool)
    assert (leaf.kind, leaf.subject, leaf.step, leaf.number) == ("bundle", record.digest, "received", 2)
    assert head == fake.ledger.head
    assert verified(cli, packed) == {"status": 0, "faults": [None], "size": 2}
    status, out, err = cli("verify", "-w", root)
    assert (status, out) == (0, f"{record.digest[:12]} anna is entry 2 of the log\n")
    assert "2 entries" in err


def test_a_release_and_then_a_yank_are_verified(cli: Cli, packed: Site, fake: FakeCoordinator) -> None:
    """What the coordinator tells the contributor, the log must tell everybody."""
    root = packed.workspace.root
    assert cli("submit", "-w", root)[0] == 0
    (record,) = outbox.load(packed.workspace.outbox)
    for state in ("released", "yanked"):
        fake.states = [StatusReply(state=state, release=1)]
        assert cli("status", "-w", root)[0] == 0
        status, _, err = cli("verify", "-w", root)
        assert status == Code.LOG_OMISSION.fate.exit
        assert "[LOG_OMISSION]" in err
        fake.ledger.tell("bundle", record.digest, state)
        assert verified(cli, packed)["status"] == 0


def dropped(fake: FakeCoordinator) -> None:
    fake.ledger.leaves.pop()


def dropped_and_covered(fake: FakeCoordinator) -> None:
    fake.ledger.leaves.pop()
    for number in range(5):
        fake.ledger.tell("bundle", f"{number:064x}", "received")


def swapped(fake: FakeCoordinator) -> None:
    fake.ledger.leaves[1] = fake.ledger.leaves[1].replace(b'"subject":"', b'"subject":"0')


@pytest.mark.parametrize(
    ("meddle", "code"),
    [(dropped, Code.LOG_ROLLBACK), (dropped_and_covered, Code.LOG_FORK), (swapped, Code.LOG_FORK)],
)
def test_a_bundle_that_is_dropped_or_swapped_is_noticed(
    cli: Cli, packed: Site, fake: FakeCoordinator, meddle: Callable[[FakeCoordinator], None], code: Code
) -> None:
    root = packed.workspace.root
    assert cli("submit", "-w", root)[0] == 0
    meddle(fake)
    for _ in range(2):
        status, _, err = cli("verify", "-w", root)
        assert status == code.fate.exit
        assert f"[{code.name}]" in err
    assert (root / "log-contradiction.txt").exists()
    # Nor by a machine that has forgotten what it saw.
    (root / "checkpoint.txt").unlink()
    assert f"[{code.name}]" in cli("verify", "-w", root)[2]


def test_a_receipt_without_an_entry_is_kept_and_told(cli: Cli, packed: Site, fake: FakeCoordinator) -> None:
    fake.ledger.tell = lambda *_: None  # type: ignore[method-assign] # it acknowledges and logs nothing
    status, _, err = cli("submit", "-w", packed.workspace.root)
    assert status == Code.LOG_OMISSION.fate.exit
    assert "[LOG_OMISSION]" in err
    (record,) = outbox.load(packed.workspace.outbox)
    assert record.receipt.encode() == fake.kept[record.digest], "the receipt proves that it was acknowledged"
    assert cli("verify", "-w", packed.workspace.root)[0] == Code.LOG_OMISSION.fate.exit


def test_a_log_that_cannot_be_asked_is_asked_later(
    cli: Cli, packed: Site, fake: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise Unavailable(Code.UNREACHABLE, "The line is cut.")

    with monkeypatch.context() as patch:
        patch.setattr("client.submission.log.LogReader", away)
        status, out, err = cli("submit", "-w", packed.workspace.root)
    assert (status, out.split()[1:]) == (0, ["anna", "received"])
    assert "greylag-client verify" in err
    assert verified(cli, packed)["status"] == 0
    (record,) = outbox.load(packed.workspace.outbox)
    assert record.logged


def test_who_names_witnesses_wants_their_word(
    cli: Cli, packed: Site, fake: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, witness = packed.workspace.root, Identity.generate()
    key = NoteKey("w1.example.org", witness.public, SignatureType.WITNESS)
    monkeypatch.setenv("GREYLAG_CLIENT_WITNESSES", json.dumps([str(key)]))
    assert cli("submit", "-w", root)[0] == 0, "nobody can have signed yet"
    assert cli("verify", "-w", root)[0] == Code.LOG_UNWITNESSED.fate.exit
    fake.ledger.cosigned.append(cosign(fake.ledger.head.note, key.name, witness, now=NOW).encode())
    assert verified(cli, packed)["status"] == 0
    monkeypatch.setenv("GREYLAG_CLIENT_WITNESSES_NEEDED", "2")
    assert cli("verify", "-w", root)[0] == Code.SETTINGS_INVALID.fate.exit
