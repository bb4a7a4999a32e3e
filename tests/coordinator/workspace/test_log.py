"""A workspace's log: what is done is in it, it outlives restored copies, and what contradicts it is found."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from coordinator.registry.log_check import contradictions
from coordinator.workspace.context import opened
from coordinator.workspace.settings import load
from protocol.documents import read_rotation, sign_rotation
from protocol.errors import Code, Refused
from protocol.log import merkle
from protocol.log.checkpoint import Checkpoint, read_checkpoint
from protocol.log.leaf import LogLeaf, read_leaf
from protocol.signing import Identity
from tests.coordinator.cli.test_main import Program, program
from tests.coordinator.contributor import enrolment
from tests.coordinator.workspace.test_restored import Place, fsck, now

__all__ = ["program"]
Change = Callable[[Place], None]


@pytest.fixture
def place(tmp_path: Path, identity: Identity) -> Place:
    return Place(tmp_path, identity)


def read(place: Place) -> list[LogLeaf]:
    with opened(place.workspace, load(place.workspace)) as open_:
        return [read_leaf(leaf) for leaf in open_.registry.log.leaves(0, 1000)]


def head(place: Place) -> Checkpoint:
    return read_checkpoint(place.workspace.checkpoint.read_bytes(), place.pool)


def check_continues(place: Place, before: Checkpoint) -> None:
    with place.open() as open_:
        after = open_.checkpoints.newest()
        proof = open_.registry.log.consistency(before.size, after.size)
    assert merkle.continues(before.size, before.root, after.size, after.root, proof)


def yank(program: Program, place: Place, digest: str) -> None:
    assert program(place.workspace, "experts", "yank", digest[:8], "--keep-key", "--reason", "Insults.") == 0


def test_what_is_done_is_in_the_log_with_what_is_signed_for(program: Program, place: Place) -> None:
    place.submit(bundle := place.make())
    release = place.work()
    yank(program, place, bundle.digest)
    told = [(leaf.kind, leaf.subject, leaf.step, leaf.actor) for leaf in read(place)]
    assert told == [
        ("pool", place.pool.digest, "founded", "operator"),
        ("contributor", place.ada.public.hex, "active", "contributor"),
        ("bundle", bundle.digest, "received", "contributor"),
        ("bundle", bundle.digest, "verified", "worker"),
        ("bundle", bundle.digest, "quarantined", "worker"),
        ("bundle", bundle.digest, "accepted", "worker"),
        ("release", release.digest, "1", "worker"),
        ("bundle", bundle.digest, "released", "worker"),
        ("bundle", bundle.digest, "yanked", "operator"),
    ]
    assert head(place).size == len(told), "what was committed is signed for"
    assert place.workspace.entries.read_bytes() == b"".join(leaf.encode() + b"\n" for leaf in read(place))
    assert program(place.workspace, "log", "verify") == 0
    assert program(place.workspace, "log", "show", "--json", "--count", "2") == 0
    shown = json.loads(program.out.splitlines()[-1])
    assert (shown["size"], [entry["step"] for entry in shown["entries"]]) == (9, ["released", "yanked"])
    assert program(place.workspace, "log", "checkpoint", "--json") == 0
    assert json.loads(program.out.splitlines()[-1])["checkpoint"] == head(place).text()


def test_restore_then_upload(program: Program, place: Place) -> None:
    """A copy from before a revocation: nothing is published or acknowledged that it does not know."""
    place.submit(place.make())
    place.work()
    backup = place.database.read_bytes()
    assert program(place.workspace, "contributors", "revoke", "ada") == 0
    seen = head(place)
    place.database.write_bytes(backup)
    with pytest.raises(Refused) as refused:
        place.submit(place.make())
    assert refused.value.code is Code.LOG_ROLLBACK
    assert "fsck --adopt" in refused.value.hint
    for verb in (["serve"], ["worker", "--once"], ["fleet"], ["log", "verify"], ["log", "checkpoint"]):
        assert program(place.workspace, *verb) == Code.LOG_ROLLBACK.fate.exit, verb
    status, said = fsck(program, place)
    assert (status, said["healthy"], said["lost_entries"]) == (Code.LOG_ROLLBACK.fate.exit, False, 1)
    assert fsck(program, place, "--adopt")[0] == 0
    check_continues(place, seen)
    assert [leaf.step for leaf in read(place)[-2:]] == ["revoked", "restored"]
    with pytest.raises(Refused) as refused:
        place.submit(place.make())
    assert refused.value.code is Code.KEY_REVOKED, "a revocation that the copy forgot holds"


def test_yank_then_restore(program: Program, place: Place) -> None:
    place.submit(bundle := place.make())
    place.work()
    backup = place.database.read_bytes()
    yank(program, place, bundle.digest)
    seen = head(place)
    place.database.write_bytes(backup)
    assert program(place.workspace, "log", "verify") == Code.LOG_ROLLBACK.fate.exit
    status, said = fsck(program, place, "--adopt")
    assert (status, said["yanked"]) == (0, [bundle.digest])
    assert place.work().spec.experts == ()
    check_continues(place, seen)
    assert fsck(program, place)[0] == 0


def test_what_the_copy_did_on_its_own_comes_after_what_it_had_lost(program: Program, place: Place) -> None:
    place.submit(place.make())
    place.work()
    backup = place.database.read_bytes()
    place.submit(lost := place.make())
    seen = head(place)
    place.database.write_bytes(backup)
    for _ in range(3):  # more than it lost
        assert program(place.workspace, "intake", "off", "--reason", "We look into it.") == 0
        assert program(place.workspace, "intake", "on") == 0
    assert head(place) == seen, "no other log is signed"
    assert program(place.workspace, "log", "checkpoint") == Code.LOG_FORK.fate.exit
    assert fsck(program, place, "--adopt")[0] == 0
    check_continues(place, seen)
    steps = [(leaf.step, leaf.subject) for leaf in read(place)]
    assert steps[seen.size - 1] == ("received", lost.digest)
    assert [step for step, _ in steps[seen.size :]] == 3 * ["intake off", "intake on"] + ["restored"]
    assert place.submit(lost) == 2
    check_continues(place, seen)
    assert fsck(program, place)[0] == 0


def test_entries_that_are_not_those_that_were_signed_for_are_not_taken_in(program: Program, place: Place) -> None:
    place.submit(place.make())
    backup = place.database.read_bytes()
    place.submit(place.make())
    place.database.write_bytes(backup)
    entries = place.workspace.entries
    entries.write_bytes(entries.read_bytes().replace(b'"received"', b'"refused"'))
    for _ in range(2):
        assert program(place.workspace, "fsck", "--adopt") == Code.LOG_FORK.fate.exit
        assert "has ended" in program.err
    entries.write_bytes(b"?\n")
    assert program(place.workspace, "log", "verify") == Code.SPEC_INVALID.fate.exit
    assert str(entries) in program.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE events SET code = 'HARMFUL' WHERE number = 4", "Entry 4 is not the one that was logged"),
        ("UPDATE events SET subject = '{other}' WHERE number = 3", "Entry 3 is not the one that was logged"),
        ("DELETE FROM events WHERE number = 4", "Entries are missing"),
        ("UPDATE log_nodes SET sha256 = x'00' WHERE number = 1", "is not the one that was logged"),
        ("DELETE FROM log_nodes WHERE number = 4", "Entry 3 is not the one"),
        ("INSERT INTO log_nodes VALUES (4711, x'00')", "1 nodes more"),
        ("UPDATE bundles SET state = 'yanked'", "is yanked; the log says released"),
        ("UPDATE contributors SET state = 'pending'", "is pending; the log says active"),
        ("DELETE FROM releases", "which the registry does not hold"),
        ("UPDATE releases SET digest = '{other}'", "the log says nothing of it"),
    ],
)
def test_what_contradicts_the_log_is_found(program: Program, place: Place, change: str, said: str) -> None:
    """An entry swapped, a decision changed behind the log's back, a release gone."""
    place.submit(place.make())
    place.work()
    with opened(place.workspace, load(place.workspace)) as open_:
        assert contradictions(open_.registry) == []
        with open_.registry.writing() as session:
            session.execute(text(change.format(other="e" * 64)))
        assert said in " ".join(contradictions(open_.registry))
    assert program(place.workspace, "log", "verify") == Code.LOG_OMISSION.fate.exit
    status, found = fsck(program, place)
    assert (found["healthy"], bool(found["log_faults"])) == (False, True)
    assert status == Code.LOG_OMISSION.fate.exit


def test_an_entry_is_undone_with_what_it_tells_of(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.submit(place.make())
    before = head(place)

    def fail(point: str) -> None:
        raise KeyboardInterrupt(point)

    with place.open() as open_:
        bundle = place.make()
        monkeypatch.setattr("coordinator.registry.bundles.fault_point", fail)
        with pytest.raises(KeyboardInterrupt, match="before-commit"):
            open_.registry.bundles.keep(bundle.manifest, check=lambda _: None, sign=lambda _: b"", now=now())
        assert open_.checkpoints.newest() == before
        assert contradictions(open_.registry) == []


def test_a_line_that_a_kill_cut_short_is_written_anew(place: Place) -> None:
    place.submit(place.make())
    entries, checkpoint = place.workspace.entries, place.workspace.checkpoint
    whole, signed = entries.read_bytes(), checkpoint.read_bytes()
    for length in (0, 10, len(whole) - 1):
        entries.write_bytes(whole[:length])
        checkpoint.unlink()
        with place.open() as open_:
            open_.checkpoints.newest()
        assert (entries.read_bytes(), checkpoint.read_bytes()) == (whole, signed)
    entries.unlink()
    place.submit(place.make())
    assert len(entries.read_bytes().splitlines()) == head(place).size


def test_an_invite_revoked_then_an_older_copy_restored(program: Program, place: Place) -> None:
    with place.open() as open_:
        token, _ = open_.registry.invites.make(uses=1, expires=now() + timedelta(days=1), note="", now=now())
    backup = place.database.read_bytes()
    assert program(place.workspace, "invites", "revoke", token[:8]) == 0
    place.database.write_bytes(backup)
    assert program(place.workspace, "log", "verify") == Code.LOG_ROLLBACK.fate.exit
    assert fsck(program, place, "--adopt")[0] == 0
    with place.open() as open_:
        assert [each.state(now()) for each in open_.registry.invites.all()] == ["revoked"]
    assert fsck(program, place)[0] == 0


def test_an_invite_that_the_log_knows_otherwise_is_found(program: Program, place: Place) -> None:
    with place.open() as open_:
        open_.registry.invites.make(uses=1, expires=now() + timedelta(days=1), note="", now=now())
        with open_.registry.writing() as session:
            session.execute(text("UPDATE invites SET state = 'revoked'"))
        (fault,) = contradictions(open_.registry)
    assert "the log says made" in fault


def test_a_key_rotated_then_an_older_copy_restored(program: Program, place: Place) -> None:
    """The old key may have been stolen: it stays out, and the new one stays in, though its statement is lost."""
    place.submit(place.make())
    place.work()
    backup, old, new = place.database.read_bytes(), place.ada, Identity.generate()
    with place.open() as open_:
        envelope = sign_rotation(place.pool, old, new, now())
        assert open_.registry.contributors.rotate(read_rotation(envelope), envelope, now=now()) == "active"
    place.ada = new
    place.submit(place.make())
    seen = head(place)
    place.database.write_bytes(backup)
    assert fsck(program, place, "--adopt")[0] == 0
    check_continues(place, seen)
    place.submit(place.make())
    place.ada = old
    with pytest.raises(Refused) as refused:
        place.submit(place.make())
    assert refused.value.code is Code.KEY_ROTATED
    assert place.work().spec.experts
    assert fsck(program, place)[0] == 0


def test_a_key_recovered_while_revoked_then_an_older_copy_restored(program: Program, place: Place) -> None:
    place.submit(place.make())
    backup, new = place.database.read_bytes(), Identity.generate()
    assert program(place.workspace, "contributors", "revoke", "ada") == 0
    file = place.folder / "enrolment.dsse.json"
    file.write_bytes(enrolment(place.pool.digest, new, "ada"))
    assert program(place.workspace, "contributors", "recover", "ada", str(file), "--reason", "It was stolen.") == 0
    place.database.write_bytes(backup)
    assert fsck(program, place, "--adopt")[0] == 0
    for key in (place.ada, new):
        place.ada = key
        with pytest.raises(Refused) as refused:
            place.submit(place.make())
        assert refused.value.code is Code.KEY_REVOKED
    assert program(place.workspace, "contributors", "approve", new.public.hex) == 0
    place.submit(place.make())
    assert fsck(program, place)[0] == 0
