"""A router takes releases that the pool's log holds, from a log that only grows and that witnesses have seen."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from protocol.bundle import Bundle
from protocol.errors import Code, GreylagError
from protocol.log.checkpoint import read_checkpoint
from protocol.log.note import SignatureType
from protocol.log.reader import Quorum
from protocol.release import sign_release
from router.follow.pull import pull
from router.follow.witness import Witness
from router.follow.workspace import CHECKPOINT, RELEASE, open_mirror
from tests.router.catalog import Catalog, serving

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)


@pytest.fixture
def other(catalog: Catalog) -> Catalog:
    """The same coordinator as it is shown to somebody else."""
    return Catalog(catalog.pool, catalog.identity)


@pytest.fixture
def elsewhere(other: Catalog) -> Iterator[str]:
    with serving(other) as where:
        yield where


def refused(code: Code, folder: Path, address: str, **contact: object) -> None:
    with pytest.raises(GreylagError) as error:
        pull(folder, address, **contact)  # type: ignore[arg-type]
    assert error.value.code is code


def test_a_release_is_taken_with_the_log_that_holds_it(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    node = tmp_path / "node"
    for number in (1, 2, 3):
        release = catalog.publish(bundles[:number], number=number)
        assert release.spec.checkpoint
        assert read_checkpoint(release.spec.checkpoint.encode(), catalog.pool).size == number
        assert pull(node, address).release == release
        assert read_checkpoint((node / CHECKPOINT).read_bytes(), catalog.pool) == catalog.ledger.head


def test_a_release_that_the_log_does_not_hold_is_refused(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    node = tmp_path / "node"
    first = catalog.publish(bundles[:1], number=1)
    pull(node, address)
    catalog.publish(bundles, number=2)
    del catalog.ledger.leaves[-1]
    refused(Code.LOG_OMISSION, node, address)
    assert open_mirror(node).release == first, "the last good one stays"
    catalog.ledger.tell("release", catalog.releases[2].digest, "3")
    refused(Code.LOG_OMISSION, node, address)
    catalog.ledger.tell("release", catalog.releases[2].digest, "2")
    assert pull(node, address).release.spec.number == 2


def test_a_log_that_goes_back_or_another_way_is_refused(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    node = tmp_path / "node"
    catalog.publish(bundles[:1], number=1)
    catalog.ledger.tell("bundle", "e" * 64, "yanked")
    pull(node, address)
    yanked = catalog.ledger.leaves.pop()
    refused(Code.LOG_ROLLBACK, node, address)
    catalog.ledger.tell("bundle", "e" * 64, "accepted")
    refused(Code.LOG_FORK, node, address)
    catalog.ledger.leaves[-1] = yanked
    pull(node, address)


def test_the_checkpoint_in_a_release_must_be_the_logs(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, other: Catalog
) -> None:
    release = catalog.publish(bundles[:1], number=1)
    other.ledger.tell("bundle", "e" * 64, "yanked")
    spec = release.spec.model_copy(update={"checkpoint": other.ledger.head.text()})
    catalog.release = catalog.releases[1] = sign_release(spec, catalog.identity)
    catalog.repository.name(catalog.release)
    catalog.ledger.leaves[-1:] = []
    catalog.ledger.tell("release", catalog.release.digest, "1")
    refused(Code.LOG_FORK, tmp_path / "node", address)
    assert not (tmp_path / "node" / RELEASE).exists()


def test_a_split_view_is_caught_by_a_witness(
    catalog: Catalog, address: str, other: Catalog, elsewhere: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    """Two readers are shown two pools: neither can tell alone, whoever wants a witness's word can."""
    witness = Witness(tmp_path / "witness", "witness.example.org/w1")
    assert Witness(tmp_path / "witness", "witness.example.org/w1").key == witness.key
    assert witness.key.type is SignatureType.WITNESS
    catalog.publish(bundles[:1], number=1)
    other.publish(bundles[1:], number=1)
    alone = [pull(tmp_path / f"alone-{where}", address).release for where, address in enumerate((address, elsewhere))]
    assert alone[0].digest != alone[1].digest, "both are taken by who asks nobody"
    signed = witness.look(address, clock=lambda: NOON)
    assert signed.note.verify(witness.key) == NOON
    asking = {"quorum": Quorum((witness.key,), 1)}
    assert pull(tmp_path / "one", address, **asking).release == catalog.release  # type: ignore[arg-type]
    refused(Code.LOG_UNWITNESSED, tmp_path / "two", elsewhere, **asking)
    with pytest.raises(GreylagError) as forked:
        witness.look(elsewhere, clock=lambda: NOON)
    assert forked.value.code is Code.LOG_FORK
    assert other.ledger.cosigned == [], "nothing was signed"
    assert (tmp_path / "witness" / "log-contradiction.txt").exists()
    other.ledger.cosigned = catalog.ledger.cosigned
    refused(Code.LOG_FORK, tmp_path / "two", elsewhere, **asking)


def test_a_witness_signs_again_as_the_log_grows(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    witness = Witness(tmp_path / "witness", "w1")
    asking = {"quorum": Quorum((witness.key,), 1)}
    for number in (1, 2):
        catalog.publish(bundles[:number], number=number)
        refused(Code.LOG_UNWITNESSED, tmp_path / "node", address, **asking)
        witness.look(address, clock=lambda: NOON)
        assert pull(tmp_path / "node", address, **asking).release.spec.number == number  # type: ignore[arg-type]
    catalog.ledger.leaves.pop()
    with pytest.raises(GreylagError) as back:
        witness.look(address, clock=lambda: NOON)
    assert back.value.code is Code.LOG_ROLLBACK
