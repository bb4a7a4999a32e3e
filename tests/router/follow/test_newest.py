"""Attacks of The Update Framework's catalogue: each first moves a reader that asks nobody, then is refused, and the
reader stays on its last good release.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from protocol.bundle import Bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.release import Release
from protocol.roles import chain
from protocol.roles import metadata as roles
from protocol.roles.metadata import Named, fingerprint, read
from protocol.signing import Identity
from protocol.v1.catalog_pb2 import GetMetadataRequest
from router.follow import newest
from router.follow import pull as pulling
from router.follow.pull import pull
from router.follow.source import Source
from router.follow.workspace import open_mirror
from tests import factories
from tests.router.catalog import Catalog, set_clock
from tests.router.repository import Repository

DAYS = timedelta(days=1)


Unprotected = Callable[..., tuple[int, list[str]]]


class _Believed(Named):
    def check(self, envelope: bytes) -> None: ...


def believe(source: Source, pool: Pool, *, now: datetime) -> Named:
    """Follow what is shown from timestamp to targets, and ask for no signature, version, digest or date."""

    def ask(role: str, version: int) -> bytes:
        return source.catalog.GetMetadata(GetMetadataRequest(role=role, version=version)).metadata

    stamp: Metadata[Timestamp] = Metadata.from_bytes(ask("timestamp", 0))
    snapshot: Metadata[Snapshot] = Metadata.from_bytes(ask("snapshot", stamp.signed.snapshot_meta.version))
    version = snapshot.signed.meta["targets.json"].version
    targets: Metadata[Targets] = Metadata.from_bytes(ask("targets", version))
    return _Believed(targets.signed.version, targets.signed.targets[roles.TARGET])


@pytest.fixture
def unprotected(monkeypatch: pytest.MonkeyPatch) -> Unprotected:
    """A reader without roles, fresh releases and log; tells which release it takes, and what is in it."""

    def pull_without(folder: Path, address: str, **contact: Any) -> tuple[int, list[str]]:
        with monkeypatch.context() as patch:
            patch.setattr(pulling, "find_newest", believe)
            patch.setattr(pulling, "check_fresh", lambda *_, **__: None)
            patch.setattr(pulling, "_check_logged", lambda *_: None)
            taken = pull(folder, address, **contact).release.spec
            return taken.number, [expert.name for expert in taken.experts]

    return pull_without


class Town(NamedTuple):
    """What an attacker finds."""

    catalog: Catalog
    bundles: list[Bundle]
    earlier: dict[tuple[str, int], bytes]
    """What the repository showed when the first release was the newest."""
    versions: dict[str, int]

    @property
    def repository(self) -> Repository:
        return self.catalog.repository

    def forge(self, number: int) -> Release:
        """Sign another release with the pool's key, and a log that holds it: both are online."""
        return self.catalog.publish(self.bundles[2:], number=number)


def rollback(town: Town) -> None:
    town.repository.files, town.repository.versions = dict(town.earlier), dict(town.versions)
    town.repository.frozen = True


def mix_and_match(town: Town) -> None:
    town.catalog.publish(town.bundles, number=3)
    town.repository.files[Targets.type, 3] = town.repository.files[Targets.type, 1]


def mixed_snapshot(town: Town) -> None:
    """A timestamp of today before a snapshot of yesterday."""
    town.catalog.publish(town.bundles, number=3)
    town.repository.frozen = True
    files, versions = town.repository.files, town.repository.versions
    files[Snapshot.type, versions[Snapshot.type]] = files[Snapshot.type, town.versions[Snapshot.type]]


def another_file(town: Town) -> None:
    """The newest release's number, over what an attacker with the pool's key has signed."""
    files, versions = dict(town.repository.files), dict(town.repository.versions)
    town.forge(2)
    town.repository.files, town.repository.versions = files, versions


def endless(town: Town) -> None:
    town.repository.stamp()
    town.repository.files[Timestamp.type, town.repository.versions[Timestamp.type]] += b" " * 20_000
    town.repository.frozen = True


def stolen_online_keys(town: Town) -> None:
    """All keys but that of targets."""
    town.repository.keys[Targets.type] = [Identity.generate()]
    town.forge(3)


def one_of_two(town: Town) -> None:
    """A release key that is not enough by itself."""
    town.repository.put(roles.make_targets(town.forge(3)), town.repository.keys[Targets.type][0])
    if town.repository.threshold > 1:
        town.repository.snap()


def stolen_timestamp_key(town: Town) -> None:
    """Nothing would ever expire."""
    town.repository.stamp(expires=datetime(9999, 12, 31, tzinfo=UTC))
    town.repository.frozen = True


def two_meanings(town: Town) -> None:
    town.repository.stamp()
    at = Timestamp.type, town.repository.versions[Timestamp.type]
    town.repository.files[at] = town.repository.files[at].replace(b'"signed":', b'"signed": {}, "signed":')
    town.repository.frozen = True


@pytest.fixture
def town(catalog: Catalog, bundles: list[Bundle]) -> Town:
    catalog.publish(bundles[:1], number=1)
    repository = catalog.repository
    town = Town(catalog, bundles, dict(repository.files), dict(repository.versions))
    catalog.publish(bundles[:2], number=2)
    return town


def refusal(node: Path, address: str, **contact: Any) -> Code:
    with pytest.raises(Refused) as refused:
        pull(node, address, **contact)
    return refused.value.code


@pytest.mark.parametrize(
    ("attack", "taken", "code"),
    [
        (rollback, (1, ["e0"]), Code.RELEASE_ROLLBACK),
        (mix_and_match, (1, ["e0"]), Code.DIGEST_MISMATCH),
        (mixed_snapshot, (1, ["e0"]), Code.DIGEST_MISMATCH),
        (another_file, (2, ["e2"]), Code.DIGEST_MISMATCH),
        (endless, (2, ["e0", "e1"]), Code.SIZE_MISMATCH),
        (stolen_online_keys, (3, ["e2"]), Code.BAD_SIGNATURE),
        (stolen_timestamp_key, (2, ["e0", "e1"]), Code.RELEASE_DATES),
        (two_meanings, (2, ["e0", "e1"]), Code.SPEC_INVALID),
    ],
)
def test_an_attack_moves_who_asks_nobody_and_is_refused(
    town: Town,
    address: str,
    tmp_path: Path,
    unprotected: Unprotected,
    attack: Callable[[Town], None],
    taken: tuple[int, list[str]],
    code: Code,
) -> None:
    node, naive = tmp_path / "node", tmp_path / "naive"
    assert unprotected(naive, address) == (2, ["e0", "e1"])
    pull(node, address)
    good = open_mirror(node).release.digest
    attack(town)
    assert unprotected(naive, address) == taken
    assert refusal(node, address) is code
    assert open_mirror(node).release.digest == good


def test_a_yank_is_hidden_for_a_day_at_most(
    town: Town, address: str, tmp_path: Path, unprotected: Unprotected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freeze: release 3 is there, and whoever asks is shown what was true when there were two."""
    node, now = tmp_path / "node", datetime.now(UTC)
    pull(node, address)
    town.repository.frozen = True
    files, versions = dict(town.repository.files), dict(town.repository.versions)
    town.catalog.publish(town.bundles[:1], number=3)
    town.repository.files, town.repository.versions = files, versions
    assert pull(node, address).release.spec.number == 2, "nobody can tell so soon"
    set_clock(monkeypatch, now + timedelta(hours=25))
    assert unprotected(tmp_path / "naive", address)[0] == 2
    assert refusal(node, address) is Code.RELEASE_EXPIRED
    assert open_mirror(node).release.spec.number == 2, "what is here goes on answering"


def test_a_release_takes_as_many_signatures_as_the_root_says(
    catalog: Catalog, bundles: list[Bundle], address: str, tmp_path: Path, unprotected: Unprotected
) -> None:
    catalog.repository = Repository(catalog.pool, catalog.identity, threshold=2)
    catalog.publish(bundles[:1], number=1)
    town = Town(catalog, bundles, {}, {})
    pull(tmp_path / "node", address)
    one_of_two(town)
    assert unprotected(tmp_path / "naive", address)[0] == 3
    assert refusal(tmp_path / "node", address) is Code.BAD_SIGNATURE
    assert open_mirror(tmp_path / "node").release.spec.number == 1


def test_a_reader_that_was_led_far_ahead_goes_on_after_a_rotation(town: Town, address: str, tmp_path: Path) -> None:
    """Fast-forward, with the stolen key of timestamp and snapshot."""
    node, repository = tmp_path / "node", town.repository
    repository.snap(1_000_000)
    repository.stamp(1_000_000)
    assert pull(node, address).release.spec.number == 2
    repository.versions |= {Snapshot.type: 10, Timestamp.type: 10}
    town.catalog.publish(town.bundles, number=3)
    assert refusal(node, address) is Code.RELEASE_ROLLBACK
    assert open_mirror(node).release.spec.number == 2
    repository.rotate(Snapshot.type, Timestamp.type)
    repository.snap()
    assert pull(node, address).release.spec.number == 3
    assert repository.versions[Timestamp.type] < 100


@pytest.mark.parametrize("thief", ["of the release key", "of every key but root's"])
def test_a_key_that_was_revoked_moves_nobody(
    town: Town, address: str, tmp_path: Path, unprotected: Unprotected, thief: str
) -> None:
    node, repository = tmp_path / "node", town.repository
    pull(node, address)
    stolen = dict(repository.keys)
    repository.rotate(Targets.type, *([] if "release" in thief else [Snapshot.type, Timestamp.type]))
    new = dict(repository.keys)
    repository.put(read(repository.files[Targets.type, 2], Targets))
    repository.snap()
    assert pull(node, address).release.spec.number == 2
    repository.keys = stolen
    town.forge(3)
    assert unprotected(tmp_path / "naive", address)[0] == 3
    assert refusal(node, address) is Code.BAD_SIGNATURE
    assert open_mirror(node).release.spec.number == 2
    repository.keys = new
    repository.snap()
    town.catalog.publish(town.bundles, number=4)
    assert pull(node, address).release.spec.number == 4


def test_a_reader_finds_its_way_through_roots_that_it_missed(town: Town, address: str, tmp_path: Path) -> None:
    repository = town.repository
    pull(tmp_path / "node", address)
    for fresh in ((Root.type,), (Root.type, Targets.type), (Timestamp.type,)):
        repository.rotate(*fresh)
    town.catalog.publish(town.bundles, number=3)
    assert pull(tmp_path / "node", address).release.spec.number == 3
    assert pull(tmp_path / "new", address).release.spec.number == 3
    # A root that the keys before did not sign is none.
    repository.keys[Root.type] = [Identity.generate()]
    repository.rotate()
    assert refusal(tmp_path / "node", address) is Code.BAD_SIGNATURE
    assert open_mirror(tmp_path / "node").release.spec.number == 3


# The first contact.


def test_a_first_root_that_the_pools_key_did_not_sign_is_refused(
    town: Town, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody between reader and coordinator, who has no key at all, but yesterday's release."""
    mine = town.catalog.repository = Repository(town.catalog.pool, Identity.generate())
    mine.name(town.catalog.releases[1])
    with monkeypatch.context() as patch:
        for module in (newest, chain):
            patch.setattr(module, "check_first", lambda *_: None)
        assert pull(tmp_path / "naive", address).release.spec.number == 1
    assert refusal(tmp_path / "node", address) is Code.BAD_SIGNATURE


def test_who_names_the_root_is_not_taken_in_by_a_stolen_pool_key(town: Town, address: str, tmp_path: Path) -> None:
    first = fingerprint(read(town.repository.files[Root.type, 1], Root))
    forged = town.catalog.repository = Repository(town.catalog.pool, town.catalog.identity)
    forged.name(town.forge(3))
    assert pull(tmp_path / "naive", address).release.spec.number == 3
    assert refusal(tmp_path / "node", address, root=first) is Code.UNTRUSTED
    assert pull(tmp_path / "other", address, root=fingerprint(read(forged.files[Root.type, 1], Root)))


def test_a_root_of_another_pool_of_the_same_people_is_refused(
    town: Town, address: str, tmp_path: Path, t5_base: Path
) -> None:
    pool = factories.make_pool(t5_base, town.catalog.identity, max_rank=3)
    pull(tmp_path / "node", address)
    mine, other = town.repository, Repository(pool, town.catalog.identity)
    other.keys[Root.type] = mine.keys[Root.type]
    other.rotate()
    other.name(town.catalog.releases[1])
    other.files[Root.type, 1] = mine.files[Root.type, 1]
    town.catalog.repository = other
    assert refusal(tmp_path / "node", address) is Code.WRONG_POOL
    other.files[Root.type, 1] = Repository(pool, town.catalog.identity).files[Root.type, 1]
    assert refusal(tmp_path / "new", address) is Code.WRONG_POOL
    town.catalog.repository = mine  # of which nothing stayed in the way
    mine.rotate(Targets.type)
    town.catalog.publish(town.bundles, number=3)
    assert pull(tmp_path / "node", address).release.spec.number == 3


def test_a_pool_without_roles_is_refused(town: Town, address: str, tmp_path: Path) -> None:
    town.repository.files.clear()
    town.repository.frozen = True
    assert refusal(tmp_path / "node", address) is Code.RELEASE_UNKNOWN
