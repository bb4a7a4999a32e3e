"""An older database is restored: it is found out and named, nothing that contributors hold receipts for is deleted,
no number is given twice, and there is a way on.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from coordinator.fleet.records.candidates import settle
from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.lifecycle import WAITING, State
from coordinator.registry.bundles import Bundles
from coordinator.registry.registry import Registry
from coordinator.review.bundle_cache import Cache
from coordinator.review.kept_figures import KeptFigures
from coordinator.review.probe import Reviewer
from coordinator.review.worker import Worker
from coordinator.serving.intake import Intake, IntakeLimits
from coordinator.storage.blobs import Store
from coordinator.storage.spool import Spool
from coordinator.workspace.context import Opened, opened
from coordinator.workspace.fsck import check_store
from coordinator.workspace.locks import exclusive
from coordinator.workspace.settings import load
from protocol.bundle import ADAPTER_WEIGHTS, Bundle
from protocol.documents import read_receipt
from protocol.errors import Code, Refused, Unavailable
from protocol.release import Release, check_fresh, read_release, sign_candidate
from protocol.signing import Identity
from protocol.spec import Review
from tests import factories
from tests.coordinator.cli.test_main import SHAPES, Program, program
from tests.coordinator.cli.test_processes import make_workspace
from tests.coordinator.conftest import resign
from tests.coordinator.contributor import enrolment
from tests.coordinator.review.workshop import MATERIAL, ObedientModel

__all__ = ["program"]


def now() -> datetime:
    return datetime.now(UTC)


class Place:
    """A workspace in which an upload and a round of the worker are one line each."""

    def __init__(self, folder: Path, ada: Identity) -> None:
        self.folder, self.ada = folder, ada
        self.workspace, self.pool = make_workspace(folder / "w", SHAPES)
        self.store = Store(str(self.workspace.folder / "store"))
        self.database = self.workspace.folder / "registry.db"
        self._made = 0

    @contextmanager
    def open(self) -> Iterator[Opened]:
        with opened(self.workspace, load(self.workspace)) as open_:
            open_.high_water.check()
            open_.high_water.level()
            yield open_

    def make(self) -> Bundle:
        self._made += 1
        folder = self.folder / f"bundle-{self._made}"
        return factories.make_bundle(folder, self.pool, self.ada, name=f"e{self._made}", seed=self._made)

    def submit(self, bundle: Bundle) -> int:
        """Return the number of the receipt."""
        with self.open() as open_:
            spool = Spool(self.workspace.spool, quota_bytes=1 << 30, floor_bytes=0)
            intake = Intake(
                self.pool, open_.identity, open_.registry, store=self.store, spool=spool, clock=now,
                limits=IntakeLimits(first_bundles=99),
            )  # fmt: skip
            intake.enrol(enrolment(self.pool.digest, self.ada, "ada"), "192.0.2.1")
            begun = intake.begin(bundle.manifest.envelope)
            for file in begun.missing:
                shutil.copy(bundle.folder / file.name, spool.path(begun.digest, file.name))
            return read_receipt(intake.commit(begun.digest, begun.token), self.pool).sequence

    def work(self) -> Release:
        with self.open() as open_:
            cache = Cache(self.workspace.bundles, self.store)
            load: Any = ObedientModel
            reviewer = Reviewer(
                load, open_.registry, cache, material=MATERIAL, review=Review(), seconds=60.0,
                kept=KeptFigures(open_.workspace.figures, MATERIAL.digest),
            )  # fmt: skip
            worker = Worker(
                self.pool, open_.identity, open_.registry, cache=cache, check=lambda _: None, reviewer=reviewer,
                clock=now, checkpoint=open_.checkpoints.newest,
            )  # fmt: skip
            while worker.step():
                pass
            row = open_.registry.releases.find()
            assert row is not None
            return read_release(row.envelope, self.pool)

    def files(self, bundle: Bundle) -> set[str]:
        return {file.sha256 for file in bundle.manifest.files.values()}


@pytest.fixture
def place(tmp_path: Path, identity: Identity) -> Place:
    return Place(tmp_path, identity)


def fsck(program: Program, place: Place, *arguments: str) -> tuple[int, dict[str, object]]:
    status = program(place.workspace, "fsck", "--json", *arguments)
    return status, json.loads(program.out.splitlines()[-1])


def test_restore_then_fsck(program: Program, place: Place) -> None:
    place.submit(first := place.make())
    backup = place.database.read_bytes()
    held = place.make()
    assert place.submit(held) == 2
    place.database.write_bytes(backup)
    for arguments in ([], ["--delete", "0"]):
        status, said = fsck(program, place, *arguments)
        assert status == Code.REGISTRY_OLDER.fate.exit
        assert (said["healthy"], said["lost_receipts"]) == (False, 1)
        assert "receipt" in program.err
        assert set(said["young"]) == place.files(held) - place.files(first)  # type: ignore[call-overload]
        assert said["dropped"] == []
    assert all(place.store.verify(sha256) for sha256 in place.files(held))
    with pytest.raises(Refused) as refused:
        place.submit(held)
    assert refused.value.code is Code.REGISTRY_OLDER, "no receipt's number is given twice in silence"
    assert fsck(program, place, "--adopt")[0] == 0
    assert place.submit(held) == 2
    status, said = fsck(program, place)
    assert (status, said["healthy"], said["orphans"]) == (0, True, [])


@pytest.mark.parametrize("process", ["serve", "worker", "fleet"])
def test_upkeep_waits_until_nobody_works(program: Program, place: Place, process: str) -> None:
    with exclusive(place.workspace, process):
        for verb in ("fsck", "migrate"):
            assert program(place.workspace, verb) == Code.WORKSPACE_BUSY.fate.exit
            assert process in program.err


def test_restore_then_serve(program: Program, place: Place) -> None:
    first, second = place.make(), place.make()
    place.submit(first)
    place.work()
    backup = place.database.read_bytes()
    place.submit(second)
    seen = place.work()
    place.database.write_bytes(backup)
    for verb in (["serve"], ["worker", "--once"], ["fsck"], ["fleet"]):
        assert program(place.workspace, *verb) == Code.REGISTRY_OLDER.fate.exit, verb
        assert "release 2" in program.err
        assert "fsck --adopt" in program.err
    assert program(place.workspace, "experts", "ls") == 0, "looking is allowed"
    assert fsck(program, place, "--adopt")[0] == 0
    third = place.work()
    assert (third.spec.number, third.spec.previous) == (3, seen.digest)
    check_fresh(third, place.pool, seen=seen, now=now(), earlier=lambda _: seen)
    assert [expert.bundle for expert in third.spec.experts] == [first.digest], "nobody can fetch what is lost"
    place.submit(second)
    fourth = place.work()
    assert [expert.bundle for expert in fourth.spec.experts] == [first.digest, second.digest]


def test_what_was_yanked_after_the_copy_is_not_public_again(program: Program, place: Place) -> None:
    yanked, old = place.make(), place.make()
    place.submit(yanked)
    place.submit(old)
    place.work()
    backup = place.database.read_bytes()
    assert program(place.workspace, "experts", "yank", yanked.digest[:8], "--keep-key", "--reason", "Insults.") == 0
    place.submit(resign(place.make(), place.ada, name=old.spec.name, supersedes=old.digest))
    place.work()
    place.database.write_bytes(backup)
    status, said = fsck(program, place, "--adopt")
    assert (status, said["yanked"]) == (0, [yanked.digest])
    assert yanked.digest[:16] in program.err
    with place.open() as open_:
        bundles = open_.registry.bundles
        assert {row.digest: row.state for row in bundles.all()} == {yanked.digest: "yanked", old.digest: "superseded"}
        public = [bundles.public_size(each.manifest.files[ADAPTER_WEIGHTS].sha256) for each in (yanked, old)]
    assert public == [None, old.manifest.files[ADAPTER_WEIGHTS].size]


def test_restore_then_promote(place: Place) -> None:
    place.submit(place.make())
    first = place.work()
    backup = place.database.read_bytes()
    place.submit(place.make())
    place.work()
    place.database.write_bytes(backup)
    with opened(place.workspace, load(place.workspace)) as open_:
        spec = first.spec.model_copy(update={"number": 2, "previous": first.digest})
        candidate = sign_candidate(spec, open_.identity)
        Fleet(open_.registry).candidates.propose(candidate, now=now())
        with pytest.raises(Refused) as refused:
            settle(open_, candidate.digest, promoted=True, by="operator", reason="Now.", campaign=None, now=now())
        assert refused.value.code is Code.REGISTRY_OLDER
        newest = open_.registry.releases.find()
    assert newest is not None
    assert newest.number == 1


@pytest.mark.parametrize("steps", [0, 2, 3])
def test_what_was_in_the_older_database_takes_its_place_in_the_adopted_release(
    program: Program, place: Place, steps: int
) -> None:
    """A signed release lists only what was let in, however far the older database had come with it."""
    waiting, released = place.make(), place.make()
    place.submit(released)
    place.work()
    place.submit(waiting)
    with place.open() as open_:
        open_.registry.bundles.move(waiting.digest, *WAITING[1 : steps + 1], actor="worker", now=now())
    backup = place.database.read_bytes()
    seen = place.work()
    place.database.write_bytes(backup)
    assert fsck(program, place, "--adopt")[0] == 0
    with place.open() as open_:
        row = open_.registry.bundles.find(waiting.digest)
        assert row is not None
        assert (row.state, row.release) == (State.RELEASED, seen.spec.number)
        # What was lost stands in the log as it was; then the older database takes the same steps.
        again = [*WAITING[steps + 1 :], State.RELEASED]
        assert [event.step for event in open_.registry.events(row.digest)] == [*WAITING[: steps + 1], *again, *again]
    assert place.work().digest == seen.digest, "there is nothing to say anew"


@pytest.mark.parametrize("steps", [0, 2, 3])
def test_who_is_revoked_before_the_adoption_does_not_hold_it_up(program: Program, place: Place, steps: int) -> None:
    """Restore, revoke, adopt: what the older database still held as waiting is turned away by the worker."""
    waiting, released = place.make(), place.make()
    place.submit(released)
    place.work()
    place.submit(waiting)
    with place.open() as open_:
        open_.registry.bundles.move(waiting.digest, *WAITING[1 : steps + 1], actor="worker", now=now())
    backup = place.database.read_bytes()
    seen = place.work()
    place.database.write_bytes(backup)
    assert program(place.workspace, "contributors", "revoke", "ada") == 0
    assert fsck(program, place, "--adopt")[0] == 0
    third = place.work()
    assert third.spec.previous == seen.digest
    assert [expert.bundle for expert in third.spec.experts] == [released.digest]
    with place.open() as open_:
        row = open_.registry.bundles.find(waiting.digest)
        assert row is not None
        assert (row.state, row.code) == (State.REFUSED, Code.KEY_REVOKED.name)


def test_a_workspace_of_an_earlier_version_begins_to_remember(place: Place) -> None:
    place.submit(place.make())
    place.work()
    for path in (place.workspace.published, place.workspace.acknowledged):
        path.unlink()
    newest = place.work()
    assert read_release(place.workspace.published.read_bytes(), place.pool).digest == newest.digest
    assert read_receipt(place.workspace.acknowledged.read_bytes(), place.pool).sequence == 1


def test_marks_never_go_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        place.submit(place.make())
    newest = place.work()
    with place.open() as open_:
        for event in open_.registry.events():  # as two that committed at once may be told of
            open_.high_water.rise(event)
            assert read_release(place.workspace.published.read_bytes(), place.pool).digest == newest.digest
            assert read_receipt(place.workspace.acknowledged.read_bytes(), place.pool).sequence == 2
        bundle = place.make()

        def fail(*_: object) -> None:
            raise Unavailable(Code.BUSY, "The registry's database does not answer.")

        with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
            patch.setattr(Bundles, "find", fail)
            patch.setattr(Bundles, "newest", fail)
            kept = open_.registry.bundles.keep(bundle.manifest, check=lambda _: None, sign=lambda _: b"3", now=now())
    assert kept == b"3", "what is kept is acknowledged"
    assert "not remembered" in [log["event"] for log in logs]


def test_files_are_dropped_only_when_asked_and_old(place: Place, tmp_path: Path) -> None:
    kept = place.make()
    place.submit(kept)
    (tmp_path / "junk").write_bytes(b"junk")
    old, day = "0" * 64, timedelta(days=1)
    place.store.put(tmp_path / "junk", old)
    (tmp_path / "w" / "store" / ".incoming-1").write_bytes(b"half")
    registry = Registry.open(f"sqlite:///{place.database}")
    later = now() + 3 * day
    assert check_store(registry, place.store, now=later).young == (old,), "younger than the newest bundle"
    registry.bundles.keep(place.make().manifest, check=lambda _: None, sign=lambda _: b"", now=now() + day)
    for delete in (None, timedelta(days=4)):
        found = check_store(registry, place.store, now=later, delete=delete)
        assert (found.orphans, found.young, found.dropped) == ((old,), (), ())
    assert check_store(registry, place.store, now=later, delete=2 * day).dropped == (old,)
    registry.close()
    assert not place.store.verify(old)
    assert all(place.store.verify(sha256) for sha256 in place.files(kept))


def test_what_is_refused_or_yanked_needs_no_bytes(program: Program, place: Place) -> None:
    yanked, refused, kept = place.make(), place.make(), place.make()
    place.submit(yanked)
    place.work()
    place.submit(refused)
    place.submit(kept)
    (lost, *_), shared = place.files(yanked) - place.files(kept), place.files(kept)
    place.store.remove(lost)
    status, said = fsck(program, place)
    assert (status, said["missing"]) == (Code.DIGEST_MISMATCH.fate.exit, [lost])
    assert "refuse or yank" in program.err
    for verb, bundle in (("yank", yanked), ("refuse", refused)):
        assert program(place.workspace, "experts", verb, bundle.digest[:8], "--reason", "Lost.") == 0
    gone = (place.files(yanked) | place.files(refused)) - shared - {lost}
    status, said = fsck(program, place)
    assert (status, said["missing"], set(said["orphans"])) == (0, [], gone)  # type: ignore[call-overload]
    day = timedelta(days=1)
    with place.open() as open_:
        open_.registry.bundles.keep(place.make().manifest, check=lambda _: None, sign=lambda _: b"", now=now() + day)
        found = check_store(open_.registry, place.store, now=now() + 3 * day, delete=day)
    assert set(found.dropped) == gone
    assert shared <= set(place.store.digests())


def test_files_of_an_upload_that_may_be_resumed_are_no_orphans(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = place.make()

    def fail(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("coordinator.registry.bundles.Bundles.keep", fail)
    with pytest.raises(KeyboardInterrupt):
        place.submit(bundle)
    with place.open() as open_:
        found = check_store(open_.registry, place.store, now=now())
    assert set(place.store.digests()) == place.files(bundle)
    assert found.orphans == ()


def test_one_file_that_cannot_be_read_hides_no_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = place.make()
    place.submit(bundle)
    rotten, *_ = sorted(place.files(bundle))
    read = Store.open

    def broken(store: Store, sha256: str, offset: int = 0) -> object:
        if sha256 == rotten:
            raise OSError(5, "Input/output error")
        return read(store, sha256, offset)

    monkeypatch.setattr(Store, "open", broken)
    with place.open() as open_:
        found = check_store(open_.registry, Store(str(place.workspace.folder / "store")), now=now())
    assert (found.damaged, found.missing) == ((rotten,), ())
